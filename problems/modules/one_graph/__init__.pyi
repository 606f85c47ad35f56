from .graph_arguments import arguments_of as arguments_of
from .graph_arguments import names_of_arguments as names_of_arguments
from .graph_arguments import nodes_of as nodes_of
from .graph_arguments import takes_graph as takes_graph
from .graph_options import Division as Division
from .graph_problem import GraphProblem as GraphProblem
from .graph_task import Task as Task
from .graph_task import task_of as task_of
