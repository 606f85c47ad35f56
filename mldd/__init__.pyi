from .algebra.bounds import Bounds as Bounds
from .algebra.models import Corrected as Corrected
from .algebra.models import Restricted as Restricted
from .algebra.objective import Objective as Objective
from .command.names import problem as problem
from .command.training import train as train
from .loop.outer_loop import Result as Result
from .loop.outer_loop import minimise as minimise
from .loop.problem import Problem as Problem
from .loop.solver import Solver as Solver
from .loop.solver import State as State
from .loop.status import Status as Status
from .loop.stop import Stop as Stop
from .loop.validation import Validation as Validation
from .models.model_file import load as load

__version__: str
