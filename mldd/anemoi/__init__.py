"""Inside of Anemoi and of any Lightning training: solvers as optimizers, groups of parameters, records, graph files.

An outermost room, as the command line is: it may use solvers and problems, and nothing uses it. What stands here needs
no package that an environment of Anemoi does not have; how solvers work and what files of mldd look like stands
elsewhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
