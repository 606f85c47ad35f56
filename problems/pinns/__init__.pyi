from .pinn import PhysicsInformed as PhysicsInformed
from .solution_model import SolutionModel as SolutionModel
from .taylor import Jets as Jets
from .taylor import TaylorNetwork as TaylorNetwork
