from .allen_cahn import AllenCahn as AllenCahn
from .allen_cahn_operator import AllenCahnOperator as AllenCahnOperator
from .operator_model import OperatorModel as OperatorModel
from .operator_options import CutOptions as CutOptions
from .operator_options import NetworkOptions as NetworkOptions
from .operator_options import SampleOptions as SampleOptions
from .residual_sage import ResidualSage as ResidualSage
from .sample_stream import SampleStream as SampleStream
