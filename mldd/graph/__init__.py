"""Graphs as sparse patterns, their partitions, clusters and couplings.

Here stand the graph itself, everything that cuts or aggregates it, and models of what a partition costs. Networks on
graphs and data sets may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
