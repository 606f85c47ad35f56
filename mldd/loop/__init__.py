"""The one loop that drives solvers, with stopping tests, and records of every step.

Here stands what is the same for every solver: its protocol, `minimise`, `Status`, histories, and states as plain data.
A step of a particular method may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
