from . import curves as curves
from . import maps as maps
from .curves import comparison as comparison
from .parts import draw_parts as draw_parts
