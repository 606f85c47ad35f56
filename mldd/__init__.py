"""mldd: multilevel domain-decomposition training of neural networks, above all of graph networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mldd.bounds import Bounds
    from mldd.objective import Corrected, Objective, Restricted
    from mldd.solver import Result, Solver, State, Status, Stop, minimise

__version__ = "0.1.0"
__all__ = ["Bounds", "Corrected", "Objective", "Restricted", "Result", "Solver", "State", "Status", "Stop", "minimise"]

_HOME = {"Bounds": "mldd.bounds"} | dict.fromkeys(("Corrected", "Objective", "Restricted"), "mldd.objective")


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the command line answers a wrong argument without waiting for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'mldd' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "mldd.solver")), name)
