"""What a network between ranks and the cost of a gradient say about methods. No methods live here, and no networks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
