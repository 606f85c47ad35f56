"""mldd: multilevel domain-decomposition training of neural networks, above all of graph networks.

The core: what a method is made of. It knows no algorithm and no data set; these are in `mldd.solvers` and
`mldd.problems`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
