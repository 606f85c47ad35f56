"""Learning where the barotropic vorticity equation takes a state, on an icosphere of any resolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mldd.problems.operators.barotropic import BarotropicVorticity
from mldd.problems.operators.barotropic_fields import BarotropicFields
from mldd.problems.operators.operator_problem import OperatorProblem
from mldd.problems.operators.sphere import Sphere


@dataclass(frozen=True)
class BarotropicOperator(OperatorProblem):
    """Learn where the vorticity equation takes a state: operator learning on a sphere.

    The map is zeta_0 -> zeta(T) - zeta_0 of the barotropic equation, the network a residual GraphSAGE.

    Besides means over neighbours its layers have derivatives to east and north.

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
    resolution : int
        Of the icosphere, which has 10 4^resolution + 2 nodes.
    equation : BarotropicVorticity
        The equation.

    Raises
    ------
    ValueError
        A resolution out of range.
    """

    resolution: int = 3
    equation: BarotropicVorticity = BarotropicVorticity()  # noqa: RUF009 (frozen)

    @cached_property
    def evolution(self) -> BarotropicFields:
        """The equation on its mesh."""
        return BarotropicFields(self.equation, Sphere(self.resolution))
