"""A trained physics-informed network: the approximate solution of its equation at any points."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Layout
from mldd.models import Field, Prediction
from mldd.problems.data import DataError, load_array
from mldd.problems.nets import NetworkModel

if TYPE_CHECKING:
    from mldd.problems.pinns.pinn import PhysicsInformed

_KEPT = ("name", "model", "network", "windows", "poisson", "points", "dtype")  # fields that say what is evaluated
_RECORDS = ("network", "windows", "poisson")  # those of them that are records
_ROUNDING = 1e-9  # of the box, by which points may lie outside


@dataclass(frozen=True)
class Networks:
    """Several networks one after the other in a vector.

    Parameters
    ----------
    layout : Layout
        Of all their tensors.
    names : tuple of str
        Of the tensors.
    """

    layout: Layout
    names: tuple[str, ...]


class SolutionModel(NetworkModel):
    """The network of a physics-informed problem, or those of its windows.

    Parameters
    ----------
    problem : PhysicsInformed
        Equation and networks.
    x : Tensor, shape (N,), optional
        Parameters of all networks; zeros by default.
    """

    def __init__(self, problem: PhysicsInformed, x: Tensor | None = None) -> None:
        super().__init__(_networks(problem), x)
        self.problem = problem

    def config(self) -> dict[str, Any]:
        """Return the fields of the problem that say what is evaluated."""
        fields: dict[str, Any] = {name: getattr(self.problem, name) for name in _KEPT}
        return {name: asdict(value) if name in _RECORDS else value for name, value in fields.items()}

    @classmethod
    def of(cls, config: dict[str, Any]) -> SolutionModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.
        """
        from mldd.problems.pinns.pinn import PhysicsInformed
        from mldd.problems.pinns.pinn_options import Architecture, Poisson, Windows

        records = {"network": Architecture, "windows": Windows, "poisson": Poisson}
        made = {key: records[key](**value) if key in records else value for key, value in config.items()}
        return cls(PhysicsInformed(**made))

    def predict(self, data: Any) -> Prediction:  # type: ignore[override]  # there are no options
        """Return the solution u at points.

        Parameters
        ----------
        data : str, path, array or Tensor, shape (m, d)
            The name of the equation for its test points, an archive ``.npz`` with one array, or the points.

        Raises
        ------
        DataError
            Points of another dimension, or outside of the box of the equation.
        """
        problem, e = self.problem, self.problem.equation
        is_known = isinstance(data, str) and data == problem.name
        name, points = (problem.name, problem.test[0].numpy()) if is_known else load_array(data, problem.name)
        if points.ndim != 2 or points.shape[1] != e.dim or points.dtype.kind not in "fiu":
            raise DataError(
                f"{name}: points must be numbers of shape (m, {e.dim}), got {points.dtype} of shape {points.shape}; "
                f"give the coordinates of {e.name}"
            )
        lower, upper = np.array(e.lower), np.array(e.upper)
        slack = _ROUNDING * (upper - lower)
        outside = int((~((points >= lower - slack) & (points <= upper + slack))).any(1).sum())
        if outside:
            raise DataError(
                f"{name}: points must lie in the box {e.lower}..{e.upper} of {e.name}, got {outside} outside of it; "
                "leave them out"
            )
        x = self.net.layout.pack([p.detach().cpu() for p in self.tensors])
        u = problem.predict(x, torch.from_numpy(np.asarray(points, np.float64))).double().numpy()
        axes = {f"x{k + 1}": Field(("point",), points[:, k]) for k in range(e.dim)}
        return Prediction(
            {"u": Field(("point",), u, {"long_name": f"solution of {e.name}"})},
            {"point": Field(("point",), np.arange(len(points)), {"long_name": "number of the point"}), **axes},
            ("point",),
            {"title": f"solution of {e.name} by a network"},
        )


def _networks(problem: PhysicsInformed) -> Any:
    """Return the network, or those of all windows and of the whole domain as one."""
    if problem.model == "network":
        return problem.net
    model = problem.window_model
    nets = [(f"windows.{k}", model.net) for k in range(model.windows)]
    nets += [("domain", model.coarse)] if model.coarse is not None else []
    shapes = tuple(shape for _, net in nets for shape in net.layout.shapes)
    return Networks(Layout(shapes), tuple(f"{of}.{name}" for of, net in nets for name in net.names))
