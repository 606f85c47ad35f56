"""Verification of forecasts in files against what happened: measures by variable and lead time, with confidence.

Here stands what needs a file of forecasts and a series alone, whoever has made the forecasts. Models and the scores of
a training stand in `mldd.problems.forecasts`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
