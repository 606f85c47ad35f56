from .graph_problem import GraphProblem as GraphProblem
from .module_layers import ModuleLayers as ModuleLayers
