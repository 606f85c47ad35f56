from .factory import optimizer as optimizer
from .recorder import Recorder as Recorder
from .subdomains import Subdomains as Subdomains
