"""Any solver in the coordinates in which the inputs of the first layer are white."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import (
    Decomposition,
    FirstLayer,
    Hierarchy,
    Identity,
    InCoordinates,
    Level,
    Metric,
    Objective,
    Remembered,
    SharedDecomposition,
    Whitening,
    coordinates_of,
    in_coordinates,
    remember,
    whitening,
)
from mldd.loop import FINITE, REPLICATED, Solver, State, is_solver
from mldd.solvers.lbfgs import LBFGS


@dataclass(frozen=True)
class Whitened:
    """A solver in coordinates in which the inputs of the first layer are white.

    It solves ``v -> f(B v)``, where B, see `mldd.algebra.Whitening`, makes the moments of the inputs nearly equal.
    Steps, pairs and scalings of the solver live in v; iterates, measures and records of the run are those of ``x = B
    v``. The same B is used on all coarse levels, which must have the same unknowns, and in the local models of parts of
    the graph or of the data. The method has no bounds.

    It matters where inputs differ much in size or are alike in most directions: rare and frequent words, and the
    constant input of the bias. Each evaluation takes two products with r columns more.

    Parameters
    ----------
    first : FirstLayer
        The inputs of the first layer and the places of its weights.
    solver : Solver
        What is done in v.
    metric : {"inputs", "bias"}
        Leading directions of the inputs, or the constant one of the bias alone.
    rank : int
        Number r of directions; 0: all below 64 inputs, 16 of more.
    damping : float
        Of small eigenvalues, in units of the mean one.

    Raises
    ------
    ValueError
        Parameters out of range, subdomains of the unknowns, or coarse levels with other unknowns.

    References
    ----------
    See `mldd.algebra.Whitening`: the idea is that of LeCun et al. (1998) and of K-FAC.
    """

    first: FirstLayer
    solver: Solver = LBFGS()
    metric: Metric = "inputs"
    rank: int = 0
    damping: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a solver that cannot be used in other coordinates."""
        if self.metric not in ("inputs", "bias"):
            raise ValueError(f"`metric` must be inputs or bias, got {self.metric!r}")
        _check(self.solver)

    @cached_property
    def _made(self) -> dict[tuple[torch.dtype, torch.device], Whitening]:
        return {}

    def prepare(self, x: Tensor) -> Whitening:
        """Return B, made at the first call; all ranks call it together.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The start: type and device.
        """
        key = x.dtype, x.device
        if key not in self._made:
            self._made[key] = whitening(self.first, x, metric=self.metric, rank=self.rank, damping=self.damping)
        return self._made[key]

    @cached_property
    def _solvers(self) -> dict[Whitening, Solver]:
        return {}

    def _inner(self, change: Whitening) -> Solver:
        """Return the solver with its levels and local models in v."""
        if change not in self._solvers:
            self._solvers[change] = _moved(self.solver, change)
        return self._solvers[change]

    @property
    def needs_gradient(self) -> bool:
        """Whether the solver asks for the gradient of the whole."""
        return bool(getattr(self.solver, "needs_gradient", True))

    @property
    def needs_value(self) -> bool:
        """Whether the solver asks for values where it asks for gradients."""
        return bool(getattr(self.solver, "needs_value", False))

    def init(self, objective: Objective, x: Tensor) -> WhitenedState:
        """Return the state of the solver at the start.

        Raises
        ------
        ValueError
            The objective has bounds, or `x` is a batch.
        """
        if not objective.bounds.is_free:
            raise ValueError("a metric of the inputs needs an objective without bounds, got one with; leave it out")
        if x.dim() != 1:
            raise ValueError(
                f"a metric of the inputs needs `x` of shape (n,), got {tuple(x.shape)}; put it around the outer solver"
            )
        change = self.prepare(x)
        v = change.solve(x)
        f = self._around(objective, change, v, x)
        return WhitenedState(inner=self._inner(change).init(f, v), v=v, x=x.clone())

    def _around(self, objective: Objective, change: Whitening, v: Tensor, x: Tensor) -> Remembered:
        """Return the objective in v, which knows that `v` stands for `x`."""
        f = InCoordinates(objective, change)
        f.know(v, x)
        return Remembered(f, self.needs_value)

    def step(self, objective: Objective, x: Tensor, state: WhitenedState) -> tuple[Tensor, WhitenedState]:
        """Do one step of the solver in v, in place."""
        change, inner = self.prepare(x), state.inner
        if not torch.equal(x, state.x):  # moved from outside
            state.v, state.gradient = change.solve(x), None
        f = self._around(objective, change, state.v, x)
        if state.gradient is not None and isinstance(objective, Remembered):
            if objective.told(x) is state.gradient and state.image is not None:
                f.keep(state.v, state.image)
        done = inner.step
        v, inner = self._inner(change).step(f, state.v, inner)
        inner.step = done + 1
        point, image = coordinates_of(f).at(v), f.told(v)
        state.v, state.inner, state.image = v, inner, image
        state.gradient = None if image is None else coordinates_of(f).origin(image)
        for kept in (x, state.x):
            kept.copy_(point)
        if state.gradient is not None:
            remember(objective, x, state.gradient)
        state.status, state.notes, state.level = inner.status, inner.notes, inner.level
        state.accepted, state.rejected = inner.accepted, inner.rejected
        inner.status = None
        return x, state


@dataclass
class WhitenedState(State):
    """State of `Whitened`.

    Attributes
    ----------
    inner : State
        Of the solver in v.
    v, x : Tensor, shape (n,)
        The iterate in both coordinates, as the last step has left it.
    gradient, image : Tensor or None
        The gradient at the iterate in x and in v, where the solver has told it.
    """

    inner: Any = field(default_factory=State)
    v: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=FINITE | REPLICATED)
    x: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=FINITE | REPLICATED)
    gradient: Tensor | None = field(default=None, repr=False)
    image: Tensor | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Make no pair of gradients of two functions."""
        self.inner.forget()


# ------------------------------------------------------------------------------------------------ solvers in v


def _parts_of(solver: Any) -> dict[str, Any]:
    """Return the fields of a solver."""
    return {f.name: getattr(solver, f.name) for f in fields(solver) if f.init} if is_dataclass(solver) else {}


def _check(solver: Any) -> None:
    """Refuse subdomains of the unknowns and levels with other ones, in the solver and those that it is made of."""
    for name, value in _parts_of(solver).items():
        if isinstance(value, Decomposition) or (isinstance(value, SharedDecomposition) and value.mask is not None):
            raise ValueError(
                f"a metric of the inputs needs subdomains that have all unknowns, got `{name}` of some of them; "
                "decompose the graph or the data (subdomains=graph or data)"
            )
        if isinstance(value, Hierarchy):
            for level in value.levels[1:]:
                if not isinstance(level.transfer, Identity):
                    raise ValueError(
                        "a metric of the inputs needs coarse levels with the unknowns of the finest, got "
                        f"{type(level.transfer).__name__}; use coarse graphs or fewer data"
                    )
        if is_solver(value):
            _check(value)


def _moved(solver: Any, change: Whitening) -> Any:
    """Return the solver with its decomposition and hierarchy in v, and likewise those of the solvers inside."""
    moved: dict[str, Any] = {}
    for name, value in _parts_of(solver).items():
        if isinstance(value, SharedDecomposition):
            moved[name] = _moved_parts(value, change)
        elif isinstance(value, Hierarchy):
            levels = (Level(in_coordinates(k.objective, change), k.transfer, k.work) for k in value.levels)
            moved[name] = Hierarchy(tuple(levels))
        elif is_solver(value):
            moved[name] = _moved(value, change)
    return replace(solver, **moved) if moved else solver


def _moved_parts(parts: SharedDecomposition, change: Whitening) -> SharedDecomposition:
    """Return the decomposition whose local models are functions of v."""

    def build(decomposition: Any, f: Objective, v: Tensor, g: Tensor | None) -> Objective:
        outer = coordinates_of(f)
        mine = None if g is None else outer.origin(g)
        return in_coordinates(parts.build(decomposition, outer.f, outer.at(v), mine), change)

    return replace(parts, build=build)
