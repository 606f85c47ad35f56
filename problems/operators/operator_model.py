"""A trained solution operator, kept in a file: it takes states on a torus of any size where the equation would."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.models import Field, Prediction
from mldd.problems.data import DataError, load_array
from mldd.problems.nets import NetworkModel
from mldd.problems.operators.allen_cahn import LARGEST, AllenCahn
from mldd.problems.operators.allen_cahn_fields import BOUND
from mldd.problems.operators.local_graphs import GraphBatch
from mldd.problems.operators.residual_sage import ResidualSage
from mldd.problems.operators.torus import Torus

_EQUATION = AllenCahn()


class OperatorModel(NetworkModel):
    """A network that gives u(T) - u_0 of the Allen-Cahn equation on a torus with the spacing of the training.

    Parameters
    ----------
    net : ResidualSage
        The network.
    x : Tensor, shape (N,), optional
        Its parameters; zeros by default.
    scale : float
        One unit of its outputs in that of u.
    equation : AllenCahn
        Whose interval and spacing they are.
    """

    def __init__(
        self, net: ResidualSage, x: Tensor | None = None, scale: float = 1.0, equation: AllenCahn = _EQUATION
    ) -> None:
        super().__init__(net, x)
        self.scale, self.equation = scale, equation

    def config(self) -> dict[str, Any]:
        """Return the network, the unit of its outputs and the equation."""
        return {"network": asdict(self.net), "scale": self.scale, "equation": asdict(self.equation)}

    @classmethod
    def of(cls, config: dict[str, Any]) -> OperatorModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.
        """
        return cls(ResidualSage(**config["network"]), None, config["scale"], AllenCahn(**config["equation"]))

    def forward(self, u: Tensor, kappa: Tensor) -> Tensor:
        """Return the states one interval later, shape (b, n, n).

        Parameters
        ----------
        u, kappa : Tensor, shape (b, n, n)
            States and diffusivities.
        """
        graph = GraphBatch.whole(Torus(u.shape[-1]), self.net.layers, **self.kind)
        inputs = torch.stack([u, kappa - 1], 3).to(**self.kind).flatten(1, 2).transpose(0, 1)[None]
        change: Tensor = self.net.outputs([t[None] for t in self.tensors], inputs, graph.means)[0]
        return torch.add(u, change.T.view(u.shape), alpha=self.scale)

    def predict(self, data: Any, *, leads: str = "1") -> Prediction:  # type: ignore[override]
        """Return the states after so many intervals, each from the one before.

        Parameters
        ----------
        data : str, path, array or Tensor, shape (b, 2, n, n)
            State and diffusivity of every sample; or an archive ``.npz`` with one array, or one called x.
        leads : str
            Number of intervals.

        Raises
        ------
        DataError
            Arrays of another shape, values that are not finite, or a diffusivity that is not positive.
        ValueError
            No number of intervals.
        """
        if not leads.isdigit() or int(leads) < 1:
            raise ValueError(f"`leads` must be a whole number >= 1, got {leads!r}")
        name, values = load_array(data, "an array")
        _check(name, values)
        u, kappa = torch.from_numpy(np.asarray(values, dtype=np.float64)).to(**self.kind).unbind(1)
        with torch.no_grad():
            states = [u]
            for _ in range(int(leads)):
                states.append(self(states[-1], kappa))
        return self._prediction(name, torch.stack(states[1:], 1).double().cpu().numpy(), _notes(values))

    def _prediction(self, name: str, made: Any, notes: tuple[str, ...]) -> Prediction:
        dims = "sample", "time", "row", "column"
        axes = {d: Field((d,), np.arange(k), {"long_name": d}) for d, k in zip(dims, made.shape, strict=True)}
        for dim, step in (("row", self.equation.spacing), ("column", self.equation.spacing)):
            axes[dim] = Field((dim,), step * np.arange(len(axes[dim].values)), {"long_name": "place"})
        times = self.equation.time * np.arange(1, made.shape[1] + 1)
        axes["time"] = Field(("time",), times, {"long_name": "time since the state"})
        fields = {"u": Field(dims, made, {"long_name": "state", "units": "1"})}
        return Prediction(fields, axes, dims[:3], {"title": f"Allen-Cahn equation from {name}"}, notes)


def _check(name: str, values: Any) -> None:
    """Refuse arrays that are no states and diffusivities."""
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if len(shape) != 4 or shape[1] != 2 or shape[2] != shape[3] or shape[2] < 3 or values.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: data must be numbers of shape (b, 2, n, n), state and diffusivity, with n >= 3, got "
            f"{getattr(values, 'dtype', '')} of shape {tuple(shape)}; stack u and kappa along axis 1"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{name}: data must be finite, got {int((~np.isfinite(values)).sum())} numbers that are not")
    if (values[:, 1] <= 0).any():
        raise DataError(
            f"{name}: the diffusivity must be > 0, got {values[:, 1].min():g}; it stands at index 1 of axis 1"
        )


def _notes(values: Any) -> tuple[str, ...]:
    """Say which inputs lie beyond those of the training."""
    spans = (("state", values[:, 0], -BOUND, BOUND), ("diffusivity", values[:, 1], 0.0, LARGEST))
    return tuple(
        f"{what} in {v.min():.3g}..{v.max():.3g}, that of the training was in {low:g}..{high:g}"
        for what, v, low, high in spans
        if v.size and (v.min() < low or v.max() > high)
    )
