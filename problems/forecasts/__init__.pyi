from .forecast_loss import ForecastLoss as ForecastLoss
from .forecast_model import ForecastModel as ForecastModel
from .forecast_network import ForecastNetwork as ForecastNetwork
from .forecast_options import Batches as Batches
from .forecast_options import Links as Links
from .forecast_options import Reading as Reading
from .forecast_plan import Plan as Plan
from .forecasting import Forecasting as Forecasting
