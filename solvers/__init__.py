"""Solvers: frozen hyper-parameters with `init` and `step`, one file per method.

A new method is one file here. What several methods are made of stands in `mldd.solvers.parts`, all that speaks PETSc in
`mldd.solvers.petsc`; problems may not be imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
