"""Forecasts of data sets that do not fit into memory: samples are read when they are needed, ranks share the cells.

Series that fit, with observations, gaps and baselines, stand in `mldd.problems.forecasts`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {"weather": "mldd.problems.weather.weather:Weather"}
MODELS = {"weather": "mldd.problems.weather.weather_model:WeatherModel"}
