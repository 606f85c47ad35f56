"""C sources that are compiled on first use, kept in the user's cache and checked before they are trusted.

What a source computes lives beside what it replaces, with a way without it. No mathematics may stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
