"""Spaces and functions that all methods are made of: objectives, bounds, transfers, decompositions, hierarchies, costs.

Here stands what can be said of vectors, subspaces and objectives without a graph, a rank or an algorithm, and, as this
is the lowest room, how text names objects of all the others. No method, no communication and no data set may stand
here; this room imports no other.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
