"""Variational and nonlinear problems on grids, with geometric hierarchies.

Here stand discretised equations with bounds, to check and to compare methods. This room imports no other of
`mldd.problems`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    "quadratic": "mldd.problems.grids.quadratic:Quadratic",
    "obstacle": "mldd.problems.grids.pde:Obstacle",
    "membrane": "mldd.problems.grids.pde:Membrane",
    "minimal-surface": "mldd.problems.grids.pde:MinimalSurface",
    "bratu": "mldd.problems.grids.pde:Bratu",
    "ignition": "mldd.problems.grids.pde:Ignition",
    "morebv": "mldd.problems.grids.pde:MoreBV",
    "forchheimer": "mldd.problems.grids.forchheimer:Forchheimer",
}
