"""Differential equations solved by window models: many small networks, each in its window of the domain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.cost import Price
from mldd.decomposition import Decomposition, contiguous
from mldd.hierarchy import Hierarchy, Level
from mldd.objective import Objective
from mldd.parallel import SERIAL, Communicator
from mldd.parallel import device as pick_device
from mldd.problems.equations import Equation, hammersley
from mldd.problems.supervised import parse_widths
from mldd.problems.taylor import Jets, Network
from mldd.problems.window_loss import LocalWindows, WindowLoss
from mldd.problems.window_model import WindowModel


def poisson(frequency: float) -> Equation:
    """Return ``-u'' = (pi w)^2 sin(pi w x)`` on (0, 1) with the solution ``sin(pi w x)``, given at both ends.

    Parameters
    ----------
    frequency : float
        The w.
    """
    wave = math.pi * frequency
    end = math.sin(wave) if frequency != round(frequency) else 0.0

    def residual(u: Jets, points: Tensor) -> Tensor:
        return -u.second[0] - wave**2 * torch.sin(wave * points)  # type: ignore[operator]

    return Equation(
        "poisson",
        (0.0,),
        (1.0,),
        (2,),
        residual,
        lambda points: end * points,
        lambda points: 4.0 * points * (1.0 - points),
        lambda points: torch.sin(wave * points[:, 0].detach().double().cpu()),
    )


@dataclass(frozen=True)
class WindowedPoisson:
    """Solve ``-u'' = (pi w)^2 sin(pi w x)``, u = sin(pi w x) at 0 and 1, by networks in windows (benchmark B3).

    Parameters
    ----------
    frequency : float
        The w.
    windows : int
        Their number; the outermost ones are centred at 0 and 1.
    width : float
        Of every window.
    points : int
        Collocation points, equidistant with both ends; 0 takes 200 per unit of `frequency`.
    hidden : str
        Hidden widths of every network joined by "-".
    coarse : bool
        Add a network of the whole domain.
    test : int
        Equidistant points at which the error is measured.
    dtype : {"float64", "float32"}
    device : {"cpu", "cuda", "auto"}
    comm : Communicator
        Its ranks divide the points.

    Raises
    ------
    ValueError
        An option that makes no sense, or windows that do not cover the domain.

    Examples
    --------
    >>> problem = WindowedPoisson(windows=4)
    >>> problem.objective().size
    4612
    """

    frequency: float = 1.0
    windows: int = 4
    width: float = 0.5
    points: int = 0
    hidden: str = "32-32"
    coarse: bool = False
    test: int = 1001
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        parse_widths(self.hidden)
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"`dtype` must be one of float64, float32, got {self.dtype!r}")
        for name, least in (("windows", 1), ("test", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be >= {least}, got {getattr(self, name)}")
        if self.points != 0 and self.points < 2:
            raise ValueError(f"`points` must be >= 2 (or 0: 200 per unit of frequency), got {self.points}")
        for name in ("frequency", "width"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be > 0, got {getattr(self, name)}")

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def model(self) -> WindowModel:
        """The window model."""
        net = Network((1, *parse_widths(self.hidden), 1))
        equation = poisson(self.frequency)
        centres, radii = (
            t.to(self._kind["device"]) for t in WindowModel.grid(equation, (self.windows,), (self.width,))
        )
        return WindowModel(equation, net, centres, radii, net if self.coarse else None, linear=True)

    @cached_property
    def collocation(self) -> Tensor:
        """All collocation points, shape (m, 1)."""
        return hammersley(self.points or max(2, round(200 * self.frequency)), 1).to(**self._kind)

    @cached_property
    def _objective(self) -> WindowLoss:
        mine = self.comm.share(len(self.collocation))
        points = self.collocation[mine.start : mine.stop]
        return self.model.loss(points, len(self.collocation), Price(), self.comm)

    def objective(self, sample: int | None = None) -> WindowLoss:
        """Return the mean squared residual, whatever the `sample`: full batch."""
        return self._objective

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start of every network, shape (n,)."""
        return self.model.initial(seed).to(**self._kind)

    def solution(self) -> None:
        """Return None: parameters that minimise the loss are not known (the function that they represent is)."""

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the one level there is.

        Raises
        ------
        ValueError
            More levels.
        """
        if levels != 1:
            raise ValueError(f"`levels` must be 1 for window models, got {levels}; `coarse=true` adds a coarse network")
        return Hierarchy((Level(self.objective()),))

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Decomposition:
        """Return the decomposition of the parameters into those of windows, or of runs of neighbouring windows.

        The local models are restrictions of the loss that evaluate the windows of a subdomain alone. With a network of
        the whole domain, it is the last one of the last run.

        Parameters
        ----------
        parts : int
            At most the number of networks.
        overlap : int
            Networks that a run shares with either neighbour.
        comm : Communicator, optional
            Its ranks divide the subdomains.

        Raises
        ------
        ValueError
            More parts than networks, fewer than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        sizes = self.model.blocks
        if not 1 <= parts <= len(sizes):
            raise ValueError(f"`parts` must be in 1..{len(sizes)} (the networks), got {parts}")
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")
        subdomains = contiguous(sizes, parts, overlap)
        ends = torch.tensor([0, *sizes]).cumsum(0)
        runs = [
            range(int(torch.searchsorted(ends, s.indices[0])), int(torch.searchsorted(ends, s.indices[-1] + 1)))
            for s in subdomains
        ]
        made: dict[range, LocalWindows] = {}

        def build(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            local = decomposition.local
            if local not in made:
                made[local] = self.model.locals(self._whole, self.collocation, runs, local)
            return made[local].at(x, decomposition)

        return Decomposition(sum(sizes), subdomains, build, comm.share(parts))

    @cached_property
    def _whole(self) -> WindowLoss:
        """The loss over all points on this rank: others hold other subdomains."""
        return self.model.loss(self.collocation, len(self.collocation), Price(), None)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        return {}

    def predict(self, x: Tensor, points: Tensor) -> Tensor:
        """Return u at points of shape (m, 1), shape (m,)."""
        return self.model.values(points)(x)

    @cached_property
    def _test(self) -> tuple[Any, Tensor]:
        points = hammersley(self.test, 1).to(**self._kind)
        return self.model.values(points), self.model.equation.solution(points)

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return ``|u - u*| / |u*|`` on the test points."""
        values, exact = self._test
        return {"relative_l2": float((values(x).double().cpu() - exact).norm() / exact.norm())}
