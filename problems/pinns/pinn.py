"""Differential equations solved by physics-informed networks: those of arXiv 2306.17648, or small ones in windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import (
    Decomposition,
    Hierarchy,
    Identity,
    Level,
    LocalRestrictions,
    Objective,
    Price,
    Stochastic,
    check_choices,
    contiguous,
    sampled,
)
from mldd.loop import Problem
from mldd.problems.nets import Draw, MiniBatches, draw_of
from mldd.problems.pinns.equations import Equation, equation, hammersley
from mldd.problems.pinns.layer_models import LayerModels
from mldd.problems.pinns.pinn_options import (
    PRESETS,
    Architecture,
    Poisson,
    Preset,
    Windows,
    check_least_or_default,
)
from mldd.problems.pinns.pinn_windows import by_windows, parse_layout
from mldd.problems.pinns.residual_loss import ResidualLoss
from mldd.problems.pinns.solution_model import SolutionModel
from mldd.problems.pinns.taylor import TaylorNetwork
from mldd.problems.pinns.window_loss import WindowLoss
from mldd.problems.pinns.window_model import WindowModel
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

_FIRST_ORDER = {"rate": 0.01, "varsigma": 0.01}
_PRODUCT = 8.0  # cost of a Hessian product in gradients: gradients have hand-written sweeps, products do not
_MANY = 1024  # points from which on subdomains are cheaper one after the other than in a batch, on a CPU
_COARSEST = 16  # collocation points that a coarse level needs at least
_WINDOWS = 4  # along each coordinate
_IN_WINDOWS: dict[str, Any] = {"network": "dense", "depth": 3, "width": 32, "rate": 5e-3, "local_steps": 10}


@dataclass(frozen=True)
class PhysicsInformed(Problem):
    """Solve a differential equation by a network that minimises its residual at collocation points.

    Parameters
    ----------
    name : str
        poisson1d, burgers, diffusion-advection, klein-gordon or allen-cahn; see
        `mldd.problems.pinns.equations.equation`.
    model : {"network", "windows"}
        One network, whose subdomains are layers; or a small network in each window of a partition of unity, see
        `mldd.problems.pinns.window_model.WindowModel`, whose subdomains are windows.
    network : Architecture
        The network, or that of every window.
    points : int
        Collocation points: Hammersley's, or equidistant in one dimension; 0 takes 10,000, and 102 for poisson1d.
    batch : int
        Points of a mini-batch, drawn anew in every outer step from the collocation points; 0 for all of them.
    windows : Windows
        The windows of model windows.
    poisson : Poisson
        What only poisson1d can be asked for.
    seed : int
        Of the mini-batches.
    dtype : {"float64", "float32"}
        Of parameters and points.
    device : {"cpu", "cuda", "auto"}
        Where the network is evaluated.
    comm : Communicator
        Its ranks divide the points.

    Raises
    ------
    ValueError
        An option that makes no sense.

    Examples
    --------
    >>> problem = PhysicsInformed("poisson1d")
    >>> problem.objective().size
    3001
    """

    name: str
    model: Literal["network", "windows"] = "network"
    network: Architecture = Architecture()
    points: int = 0
    batch: int = 0
    windows: Windows = Windows()
    poisson: Poisson = Poisson()
    seed: int = 0
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, {"name": tuple(PRESETS), "model": ("network", "windows"), "dtype": ("float64", "float32")})
        check_least_or_default(self, {"points": 4})
        if not 0 <= self.batch <= self._count:
            raise ValueError(f"`batch` must be in 0..{self._count} (0: all points), got {self.batch}")
        if self.poisson != Poisson() and self.name != "poisson1d":
            raise ValueError(f"`poisson` is for poisson1d, got {self.poisson} for {self.name}; leave it out")
        if self.model == "network" and self.windows != Windows():
            raise ValueError(f"`windows` needs model=windows, got {self.windows} with model=network")
        if self.model == "windows" and self.batch:
            raise ValueError(f"`batch` needs model=network, got {self.batch} with model=windows")
        if self.model == "windows" and self.poisson.boundary == "soft":
            raise ValueError("`poisson.boundary` soft needs model=network, got model=windows")
        _ = self._layout

    # -------------------------------------------------------------------------------- what everything is made of

    @property
    def preset(self) -> Preset:
        """What the name stands for."""
        known = PRESETS[self.name]
        return known if self.model == "network" else replace(known, **_IN_WINDOWS)

    @property
    def _count(self) -> int:
        return self.points or self.preset.points

    @cached_property
    def equation(self) -> Equation:
        """The differential equation."""
        return equation(self.name, self.poisson.frequency, self.poisson.unit)

    @cached_property
    def net(self) -> TaylorNetwork:
        """The network, or that of every window."""
        depth, width = self.network.depth or self.preset.depth, self.network.width or self.preset.width
        kind = self.preset.network if self.network.kind == "auto" else self.network.kind
        return TaylorNetwork((self.equation.dim, *[width] * (depth - 1), 1), kind, self.network.horizon)

    @property
    def _layout(self) -> tuple[int, ...]:
        return parse_layout(self.windows.count or _WINDOWS, self.equation.dim)

    @cached_property
    def window_model(self) -> WindowModel:
        """The networks of all windows.

        Raises
        ------
        ValueError
            A window without collocation points.
        """
        centres, radii = WindowModel.grid(self.equation, self._layout, self.windows.ratio)
        device = self._kind["device"]
        coarse = self.net if self.windows.coarse else None
        model = WindowModel(self.equation, self.net, centres.to(device), radii.to(device), coarse)
        empty = int((~model.inside(self.collocation[0]).any(1)).sum())
        if empty:
            raise ValueError(
                f"every window must have collocation points, got {empty} of {model.windows} without; use more `points`"
                " or fewer windows (`windows.count`)"
            )
        return model

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    def _collocation(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Return `count` points, and which of them penalise a boundary condition (None: none do)."""
        e, soft = self.equation, self.poisson.boundary == "soft"
        points = e.scaled(hammersley(count - 2 if soft else count, e.dim))
        if not soft:
            return points.to(**self._kind), None
        ends = torch.tensor([[e.lower[0]], [e.upper[0]]], dtype=points.dtype)
        at_end = (torch.arange(count) >= count - 2)[:, None]
        return torch.cat([points, ends]).to(**self._kind), at_end.to(self._kind["device"])

    @cached_property
    def collocation(self) -> tuple[Tensor, Tensor | None]:
        """All collocation points, and which of them penalise a boundary condition (None: none do)."""
        return self._collocation(self._count)

    def _loss(self, price: Price, level: int = 0) -> ResidualLoss | WindowLoss:
        """Return the mean over all points of a level, divided over the ranks."""
        points, penalised = self._collocation(self._thinned(level)) if level else self.collocation
        if self.model == "network":
            return self._of_network(torch.arange(len(points)), price, self.comm, (points, penalised))
        mine, model = self.comm.share(len(points)), self.window_model
        here = points[mine.start : mine.stop]
        price = price.scaled(model.evaluations(here) / model.evaluations(points))
        return model.loss(here, len(points), price, self.comm)

    def _of_network(
        self,
        rows: Tensor,
        price: Price,
        comm: Communicator | None,
        collocation: tuple[Tensor, Tensor | None],
        drawn: Draw | None = None,
    ) -> ResidualLoss:
        """Return the mean over the points `rows` of `collocation`, divided over the ranks of `comm`."""
        points, penalised = collocation
        mine = range(len(rows)) if comm is None else comm.share(len(rows))
        chosen = rows[mine.start : mine.stop].to(points.device)
        ends = None if penalised is None else penalised[chosen]
        price = price.scaled(len(mine) / len(rows))
        return ResidualLoss(self.net, self.equation, points[chosen], len(rows), ends, price, comm, drawn)

    def _price(self, count: int, fine: bool = True) -> Price:
        return Price(count / self._count, fine, product=_PRODUCT)

    def _thinned(self, level: int) -> int:
        return self._count >> (self.equation.dim * level)

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _objective(self) -> Objective:
        full = self._loss(self._price(self._count))
        if self.batch == 0 or isinstance(full, WindowLoss):
            return full
        batches = MiniBatches(self._count, self.batch, key=(self.seed % 2**64,))

        def draw(step: int) -> ResidualLoss:
            rows = batches.rows(step)
            return self._of_network(rows, self._price(len(rows)), self.comm, self.collocation, Draw(step, rows))

        return Stochastic(full, draw)

    def objective(self, sample: int | None = None) -> Objective:
        """Return the loss over all points; with mini-batches it offers ``sample(step)``.

        Parameters
        ----------
        sample : int, optional
            Asks for the mini-batch of this outer step.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, of every network, shape (N,)."""
        start = self.net.initial(seed) if self.model == "network" else self.window_model.initial(seed)
        return start.to(**self._kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss with all points, with ``2^-d`` of them, ``4^-d``, ...: other points of the same kind.

        All levels have the same parameters; coarse ones take all of their points in every step.

        Raises
        ------
        ValueError
            No level, or a coarsest one of fewer than 16 points.
        """
        most = 1 + sum(self._thinned(k) >= _COARSEST for k in range(1, 64))
        if not 1 <= levels <= most:
            raise ValueError(f"`levels` must be in 1..{most} for {self._count} points, got {levels}")
        made = [Level(self.objective())]
        for k in range(1, levels):
            price = self._price(self._thinned(k), fine=False)
            f = self._loss(price, k)
            made.append(Level(f, Identity(f.size), price.gradient))
        return Hierarchy(tuple(made))

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Decomposition:
        """Return the decomposition of the parameters into runs of layers, widened by `overlap` layers on both sides.

        Every subdomain has the loss over all points (of the mini-batch) with the other layers fixed. The subdomains of
        a window model are windows instead, or runs of them: see `mldd.problems.pinns.pinn_windows.by_windows`.

        Raises
        ------
        ValueError
            More parts than layers (networks), fewer than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        if self.model == "windows":
            points, price = self.collocation[0], self._price(self._count)
            return by_windows(self.window_model, points, price, parts, overlap, comm)
        layout = self.net.layout
        if not 1 <= parts <= self.net.layers:
            raise ValueError(f"`parts` must be in 1..{self.net.layers} (the layers of the network), got {parts}")
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")

        @lru_cache(maxsize=1)  # ranks hold other subdomains, so each evaluates all points
        def whole(drawn: Draw | None) -> ResidualLoss:
            rows = torch.arange(self._count) if drawn is None else drawn.rows
            return self._of_network(rows, self._price(len(rows)), None, self.collocation)

        def build(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            loss = whole(draw_of(f))
            in_batch = loss.points.is_cuda or (len(loss.points) < _MANY and len(decomposition.local) > 1)
            return (LocalRestrictions if in_batch else LayerModels)(loss, decomposition, x.clone())

        subdomains = contiguous(layout.blocks, parts, overlap)
        return Decomposition(layout.size, subdomains, build, comm.share(parts), blocks=layout.slices)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        split: dict[str, Any] = {"parts": self.net.layers, "overlap": 0, "local_steps": self.preset.local_steps}
        every: dict[str, Any] = {}
        if self.model == "windows":
            every = {"parts": len(self.window_model.blocks), "overlap": 0}
            split |= every | {"global_steps": 10}
        known: dict[str, dict[str, Any]] = {
            "adam": {"lr": self.preset.rate},
            "aspqn": split,
            "mspqn": split,
            "schwarz": {"damping": 0.5} if every else {},  # windows overlap: the sum of their steps is too long
            "adagrad": _FIRST_ORDER,
            "ml-adagrad": {f"smoother.{key}": value for key, value in _FIRST_ORDER.items()},
            "dd-adagrad": {f"local.{key}": value for key, value in _FIRST_ORDER.items()},
        }
        return every | known.get(solver, {})

    # -------------------------------------------------------------------------------- what the user sees

    def module(self, x: Tensor) -> SolutionModel:
        """Return the networks with these parameters, which give u at any points."""
        return SolutionModel(self, x)

    def predict(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the approximate solution u at any points of the box, shape (m,).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        """
        return self._values(points)(x)

    def _values(self, points: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that maps parameters to u at these points."""
        e, points = self.equation, points.to(**self._kind)
        if self.model == "windows":
            return self.window_model.values(points)
        streams = self.net.at(points, (0,) * e.dim)

        def values(x: Tensor) -> Tensor:
            with torch.no_grad():
                value = streams.jets(self.net.layout.views(x)).value
                if self.poisson.boundary == "hard":
                    value = e.lift(points) + e.factor(points) * value
            return value[:, 0]

        return values

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test points on a regular grid with the reference solution there, shapes (m, d) and (m,)."""
        axes = [torch.linspace(0.0, 1.0, count, dtype=torch.float64) for count in self.preset.grid]
        points = self.equation.scaled(torch.cartesian_prod(*axes).view(-1, self.equation.dim))
        return points, self.equation.solution(points)

    @cached_property
    def _tests(self) -> list[Callable[[Tensor], Tensor]]:
        """The functions that map parameters to u at the test points, piece by piece."""
        return [self._values(piece) for piece in torch.split(self.test[0], 10_000)]

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return ``|u - u*| / |u*|`` and, as arXiv 2306.17648 has it, ``|u - u*| / |u|`` on the test points."""
        exact = self.test[1]
        u = torch.cat([values(x) for values in self._tests]).double().cpu()
        error = float((u - exact).norm())
        return {
            "relative_l2": error / float(exact.norm()),
            "relative_l2_paper": error / max(float(u.norm()), torch.finfo(torch.float64).tiny),
        }
