from .forchheimer import Forchheimer as Forchheimer
from .pde import Bratu as Bratu
from .pde import Ignition as Ignition
from .pde import Membrane as Membrane
from .pde import MinimalSurface as MinimalSurface
from .pde import MoreBV as MoreBV
from .pde import Obstacle as Obstacle
from .quadratic import Quadratic as Quadratic
