"""Any torch or torch_geometric module on one graph: whole, on the shares of ranks, on parts and on coarser graphs.

Here stands what evaluates a network whose calls are its own on pieces of a graph, and measures which are exact. Many
graphs are samples and stand in the room above; layers that mldd knows by kind live in `mldd.problems.nets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
