from .pinn import PhysicsInformed as PhysicsInformed
from .taylor import Jets as Jets
from .taylor import Network as Network
