"""Pictures: convergence of runs, comparisons, parts of a graph, and maps.

Here stands what draws with matplotlib, from records and arrays that are given. Nothing may be computed here that a run
depends on.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
