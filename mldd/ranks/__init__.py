"""Processes and devices: the communicator, messages between ranks, halos, and vectors shared with PETSc.

This room and `mldd.solvers.petsc` are the only ones that speak MPI, torch.distributed or PETSc, and import them when
they are first used. What ranks exchange stands here; what they compute may not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
