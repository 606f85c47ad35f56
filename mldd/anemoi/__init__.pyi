from .coarse_start import CoarseStart as CoarseStart
from .coarse_start import KeepWeights as KeepWeights
from .factory import optimizer as optimizer
from .recorder import Recorder as Recorder
from .reordering import reorder as reorder
from .subdomains import Subdomains as Subdomains
from .thinning import thin as thin
