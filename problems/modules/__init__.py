"""Problems made of any torch module: what a user has trained by a loop of their own, decomposed.

Here stand the problems around a module, its data and its loss, and what they share: the layers of a module as
subdomains of its parameters. Networks that mldd has written itself live in `mldd.problems.nets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
