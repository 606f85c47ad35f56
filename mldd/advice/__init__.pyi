from .advice import Advice as Advice
from .advice import advise as advise
