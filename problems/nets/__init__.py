"""Networks as pure functions of parameters and inputs, with the operators and local graphs that they are evaluated on.

Here stand graph networks and their layers, dense networks, coarse networks and mini-batches. Losses of a particular
problem and readers may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
