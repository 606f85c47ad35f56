"""Decompositions of unknowns and of data into overlapping subdomains, with their local models.

Here stands who updates what, and what a subdomain minimises. How the data are cut, and solvers, live elsewhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
