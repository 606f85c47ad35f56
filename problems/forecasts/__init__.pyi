from .forecast_data import Plan as Plan
from .forecast_loss import ForecastLoss as ForecastLoss
from .forecast_network import ForecastNetwork as ForecastNetwork
from .forecast_options import Batches as Batches
from .forecast_options import Links as Links
from .forecast_options import Reading as Reading
from .forecasting import Forecasting as Forecasting
