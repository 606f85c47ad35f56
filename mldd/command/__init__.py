"""The command line: text to objects, runs, comparisons and tables.

Here alone strings become problems and solvers, options are checked and results are written. Solvers and problems are
looked up by name when they are needed; none is known here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
