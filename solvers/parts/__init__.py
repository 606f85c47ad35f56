"""What several methods are made of: sweeps over subdomains, quasi-Newton pairs, Hessian solves, small subspaces.

A file here is used by at least two methods and is no method of its own. It imports no method.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
