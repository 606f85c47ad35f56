"""Learning the solution operators of evolution equations from samples that a solver of the equation makes on demand.

Here stand equations with their solvers, the stream of samples, the network, and the problem. No files are read here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    "allen-cahn-operator": "mldd.problems.operators.allen_cahn_operator:AllenCahnOperator",
    "barotropic-operator": "mldd.problems.operators.barotropic_operator:BarotropicOperator",
}
MODELS = {"operators": "mldd.problems.operators.operator_model:OperatorModel"}
