"""The watch for silent errors: bits that memory, a link or a processor has changed without anybody being told.

Here stand the checks of iterates, states and gradients, when they are made, and the copies that a run goes back to.
What a solver declares of its state is looked up here; no solver is known by name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
