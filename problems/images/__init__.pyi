from .sample_model import SampleModel as SampleModel
from .supervised import Digits as Digits
