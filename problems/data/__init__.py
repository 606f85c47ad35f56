"""Readers of files, known data sets, time series, shards and meshes.

Here stands what turns files and formulas into arrays and graphs. No network, loss or problem may stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
