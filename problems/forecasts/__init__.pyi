from .forecast_loss import ForecastLoss as ForecastLoss
from .forecasting import Forecasting as Forecasting
