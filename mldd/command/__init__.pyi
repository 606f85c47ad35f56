from .builder import current as current
from .cli import main as main
from .keys import SOLVERS as SOLVERS
from .names import described as described
from .names import name_of as name_of
from .names import solver_spec as solver_spec
from .partition_table import measured as measured
