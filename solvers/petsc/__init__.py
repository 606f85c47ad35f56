"""TAO and SNES in both directions: PETSc's solvers as ours, and ours as PETSc types ``python``.

All that needs PETSc beyond shared vectors stands here. petsc4py is imported when a solver is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {"tao": "mldd.solvers.petsc.tao:Tao", "snes": "mldd.solvers.petsc.snes:Snes"}
