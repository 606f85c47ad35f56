"""Supervised learning of independent examples, images of digits above all.

Here stand problems whose samples have no graph between them. Dense networks stand in `mldd.problems.nets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {"digits": "mldd.problems.images.supervised:Digits"}
MODELS = {"samples": "mldd.problems.images.sample_model:SampleModel"}
