"""LocalSGD and DiLoCo: nonlinear Schwarz methods over parts of the data, without a correction of the local losses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from mldd.algebra import Around, Decomposition, Objective, Remembered, SharedDecomposition, layers_of, sampled
from mldd.loop import Solver, State
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.baselines import Adam, Sgd, SgdState
from mldd.solvers.parts import Memory, Sweep, SweepState


@dataclass(frozen=True)
class FreshSamples:
    """A local solver whose h-th step sees sample h of the local models, where these are stochastic.

    Parameters
    ----------
    solver : Solver
        The local solver.
    """

    solver: Solver

    @property
    def batched(self) -> bool:
        """Whether the solver takes all subdomains of a rank at once."""
        return bool(getattr(self.solver, "batched", False))

    def init(self, objective: Objective, x: Tensor) -> Any:
        """Return the state of the solver."""
        return self.solver.init(objective, x)

    def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Do one step on the sample of its number."""
        return self.solver.step(resampled(objective, state.step), x, state)


def resampled(f: Objective, number: int) -> Objective:
    """Return `f` with sample `number` of what it is composed of; `f` itself where nothing is stochastic.

    Parameters
    ----------
    f : Objective
        What may be composed of a stochastic objective.
    number : int
        Of the sample.
    """
    layers = list(layers_of(f))
    depth = next((k for k, layer in enumerate(layers) if hasattr(layer, "sample")), None)
    if depth is None:
        return f
    outer, changed = layers[:depth], sampled(layers[depth], number)
    for layer in reversed(outer):
        if not isinstance(layer, Remembered):
            changed = replace(layer, f=changed)
    return changed


def _averaging(
    decomposition: Decomposition | SharedDecomposition, local: Solver, steps: int, memory: Memory, comm: Communicator
) -> Sweep:
    """Return the sweep whose correction is ``mean_i(y_i) - x`` with ``y_i`` from the local losses as they are."""
    if not isinstance(decomposition, SharedDecomposition) or decomposition.mask is not None:
        raise ValueError(
            "`decomposition` must be one into parts of the data or graph, each with all unknowns, got one of the "
            "unknowns; decompose the data (digits:subdomains=data)"
        )
    if not steps >= 1:
        raise ValueError(f"`local_steps` must be >= 1, got {steps}")
    own = replace(decomposition, corrected=False)
    return Sweep(own, FreshSamples(local), steps, combine="wasm", memory=memory, comm=comm)


def _correction(sweep: Sweep, objective: Objective, x: Tensor, state: LocalSgdState) -> Tensor:
    """Return ``mean_i(y_i) - x``; parts that diverged stay at x and are counted, on all ranks."""
    c = sweep.correction(objective, x, state.sweep)
    state.accepted += sweep.decomposition.parts - sweep.judge(state.sweep, state)
    return c


@dataclass(frozen=True)
class LocalSgd:
    r"""LocalSGD: ``x <- mean_i y_i``, where ``y_i`` is x after `local_steps` steps of SGD on the loss of part i alone.

    It is the additive nonlinear Schwarz iteration with weights ``wasm``, parts of the data as subdomains, and local
    models without the first-order correction: a fixed point is *not* a critical point of the loss, but O(lr) from one
    (for more than one step and parts that differ). Where the local models are stochastic, every local step sees a
    mini-batch of its own.

    Parameters
    ----------
    decomposition : SharedDecomposition
        Parts of the data or graph.
    local : Solver
        What every part does its steps with.
    local_steps : int
        H, the steps between two synchronisations.
    memory : {"reset", "keep", "average"}
        What happens to the state of the local solver (its momentum, say) at a synchronisation: it starts anew, is kept
        by every part, or is averaged over the parts as x is (one more synchronisation for each of its vectors).
    comm : Communicator
        Its ranks divide the parts.

    Raises
    ------
    ValueError
        Subdomains of the unknowns, or hyper-parameters out of range.

    References
    ----------
    Stich, arXiv 1805.09767, algorithm 1 (with the average taken at every synchronisation; momentum and `memory` are
    additions).
    """

    decomposition: SharedDecomposition
    local: Solver = Sgd(0.1)  # noqa: RUF009 (frozen)
    local_steps: int = 10
    memory: Memory = "reset"
    comm: Communicator = SERIAL

    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        _ = self.sweep

    @cached_property
    def sweep(self) -> Sweep:
        """The local steps of all parts and their average."""
        return _averaging(self.decomposition, self.local, self.local_steps, self.memory, self.comm)

    def init(self, objective: Objective, x: Tensor) -> LocalSgdState:
        """Return fresh states of the local solver, where they are kept."""
        return LocalSgdState(sweep=self.sweep.init(objective, x))

    def step(self, objective: Objective, x: Tensor, state: LocalSgdState) -> tuple[Tensor, LocalSgdState]:
        """Do the local steps and one synchronisation, in place."""
        x.add_(_correction(self.sweep, objective, x, state))
        return objective.bounds.project(x, out=x) if not objective.bounds.is_free else x, state


@dataclass(frozen=True)
class DiLoCo:
    r"""DiLoCo: LocalSGD with an outer step of SGD with Nesterov's momentum on the pseudo-gradient ``x - mean_i y_i``.

    With d the pseudo-gradient: ``m <- outer_momentum m + d``, ``x <- x - outer_lr (d + outer_momentum m)``. With
    ``outer_lr = 1`` and ``outer_momentum = 0`` it is LocalSGD.

    Parameters
    ----------
    decomposition : SharedDecomposition
        Parts of the data or graph.
    local : Solver
        What every part does its steps with (weight decay belongs to the loss).
    outer_lr, outer_momentum : float
        Step size and momentum of the outer step.
    local_steps, memory, comm
        As for `LocalSgd`; the parts keep the state of their local solvers by default, as published.

    Raises
    ------
    ValueError
        Subdomains of the unknowns, or hyper-parameters out of range.

    References
    ----------
    Douillard et al., arXiv 2311.08105, algorithm 1, whose local steps are hundreds of AdamW.
    """

    decomposition: SharedDecomposition
    local: Solver = Adam(1e-3)  # noqa: RUF009 (frozen)
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    local_steps: int = 10
    memory: Memory = "keep"
    comm: Communicator = SERIAL

    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not self.outer_lr > 0:
            raise ValueError(f"`outer_lr` must be > 0, got {self.outer_lr}")
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"`outer_momentum` must be in [0, 1), got {self.outer_momentum}")
        _ = self.sweep

    @cached_property
    def sweep(self) -> Sweep:
        """The local steps of all parts and their average."""
        return _averaging(self.decomposition, self.local, self.local_steps, self.memory, self.comm)

    @cached_property
    def outer(self) -> Sgd:
        """The outer iteration."""
        return Sgd(self.outer_lr, self.outer_momentum, nesterov=self.outer_momentum > 0)

    def init(self, objective: Objective, x: Tensor) -> LocalSgdState:
        """Return fresh states of the local solver, where they are kept, and of the outer momentum."""
        return LocalSgdState(sweep=self.sweep.init(objective, x), outer=self.outer.init(objective, x))

    def step(self, objective: Objective, x: Tensor, state: LocalSgdState) -> tuple[Tensor, LocalSgdState]:
        """Do the local steps, one synchronisation, and the outer step, in place."""
        d = _correction(self.sweep, objective, x, state).neg_()
        x, state.outer = self.outer.step(Known(objective, d), x, state.outer)
        return x, state


@dataclass(frozen=True)
class Known(Around):
    """`f` with a gradient that is given: what a first-order solver sees of a pseudo-gradient.

    Parameters
    ----------
    f : Objective
    g : Tensor, shape (n,)
        The given gradient.
    """

    g: Tensor

    def gradient(self, x: Tensor) -> Tensor:
        """Return what was given."""
        return self.g


@dataclass
class LocalSgdState(State):
    """State of `LocalSgd` and `DiLoCo`.

    Attributes
    ----------
    sweep : SweepState
        With the states of the local solvers that are kept.
    outer : SgdState
        The outer momentum of DiLoCo.
    """

    sweep: SweepState = field(default_factory=SweepState)
    outer: SgdState = field(default_factory=SgdState)
