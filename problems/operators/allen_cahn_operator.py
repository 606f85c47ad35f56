"""Learning where the Allen-Cahn equation takes a state, on a torus of any size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from mldd.problems.operators.allen_cahn import AllenCahn
from mldd.problems.operators.allen_cahn_fields import AllenCahnFields
from mldd.problems.operators.operator_model import OperatorModel
from mldd.problems.operators.operator_problem import OperatorProblem
from mldd.problems.operators.torus import Torus


@dataclass(frozen=True)
class AllenCahnOperator(OperatorProblem):
    """Learn where the Allen-Cahn equation takes a state: operator learning on a torus.

    The map is (u_0, kappa) -> u(T) - u_0, the network a residual GraphSAGE.

    Parameters
    ----------
    network : NetworkOptions
        The network.
    sampling : SampleOptions
        Which samples are trained on.
    pieces : CutOptions
        What is decomposed, and what ranks share.
    seed : int
        Of the samples.
    dtype : {"float32", "float64"}
        Of parameters and samples.
    device : str
        Where they are.
    comm : Communicator
        Ranks that share evaluations.
    n : int
        Nodes of a side of the torus.
    equation : AllenCahn
        The equation; a larger n is a larger torus of equal spacing.

    Raises
    ------
    ValueError
        Fewer than 3 nodes of a side.
    """

    n: int = 24
    equation: AllenCahn = AllenCahn()  # noqa: RUF009 (frozen)

    @cached_property
    def evolution(self) -> AllenCahnFields:
        """The equation on its torus."""
        return AllenCahnFields(self.equation, Torus(self.n, self.equation.spacing))

    def module(self, x: Tensor) -> OperatorModel:
        """Return the network with these parameters, which goes ahead by one interval on a torus of any size."""
        return OperatorModel(self.net, x, self.scale, self.equation)
