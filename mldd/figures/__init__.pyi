from . import curves as curves
from . import maps as maps
from .curves import comparison as comparison
from .curves import convergence as convergence
from .parts import draw_parts as draw_parts
from .style import figure_files as figure_files
