from .cell_reader import CellReader as CellReader
from .weather import Weather as Weather
from .weather_model import WeatherModel as WeatherModel
