"""Variational and nonlinear problems on grids, with geometric hierarchies.

Here stand discretised equations with bounds, to check and to compare methods. This room imports no other of
`mldd.problems`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
