from .cell_reader import CellReader as CellReader
from .weather import Weather as Weather
