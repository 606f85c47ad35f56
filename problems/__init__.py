"""Problems: what is trained or solved, one room per family.

The rooms are `data`, `nets`, `graphs`, `forecasts`, `images`, `modules`, `operators`, `pinns` and `grids`. Solvers may
not be imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
