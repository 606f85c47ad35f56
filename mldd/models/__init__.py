"""Trained models: the file that keeps one, and what a prediction consists of.

Here stands what is the same for every kind of model. A particular network, and the data it reads, may not stand here:
rooms of `mldd.problems` have a table ``MODELS`` of their kinds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
