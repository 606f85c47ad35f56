from .detection import Detection as Detection
from .detection import Ending as Ending
from .detector import Detector as Detector
from .invariants import REPLICATED as REPLICATED
from .invariants import RISING as RISING
