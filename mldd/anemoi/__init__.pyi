from .factory import optimizer as optimizer
from .recorder import Recorder as Recorder
from .reordering import reorder as reorder
from .subdomains import Subdomains as Subdomains
