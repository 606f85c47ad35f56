from .compiler import TOLERANCE as TOLERANCE
from .compiler import library_of as library_of
