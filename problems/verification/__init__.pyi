from .forecast_file import ForecastFile as ForecastFile
from .forecast_file import read_forecasts as read_forecasts
from .scores import Scores as Scores
from .verification import verify as verify
