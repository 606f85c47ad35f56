from .forecast_loss import ForecastLoss as ForecastLoss
from .forecast_model import ForecastModel as ForecastModel
from .forecasting import Forecasting as Forecasting
