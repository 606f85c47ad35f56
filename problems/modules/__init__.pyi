from .graph_problem import GraphProblem as GraphProblem
from .module_layers import Group as Group
from .module_layers import ModuleLayers as ModuleLayers
from .physics_problem import PhysicsProblem as PhysicsProblem
from .sample_loss import SampleLoss as SampleLoss
from .samples import Samples as Samples
from .supervised_problem import SupervisedProblem as SupervisedProblem
