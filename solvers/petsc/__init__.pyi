from .snes import Snes as Snes
from .tao import Tao as Tao
from .tao_problem import tao_minimise as tao_minimise
