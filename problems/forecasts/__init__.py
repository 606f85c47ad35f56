"""Forecasts of weather and traffic: series on nodes, losses, metrics and pictures.

Here stands what knows of time, lead times and baselines. Readers of files stand in `mldd.problems.data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    name: f"mldd.problems.forecasts.forecasting:Forecasting?name={name}" for name in ("era5-uk", "molene", "metr-la")
}
MODELS = {"forecasts": "mldd.problems.forecasts.forecast_model:ForecastModel"}
