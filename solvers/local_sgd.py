"""LocalSGD, Local Adam and DiLoCo: nonlinear Schwarz methods over parts of the data, without corrected losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from mldd.algebra import Around, Objective, SharedDecomposition
from mldd.loop import Solver, State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.baselines import Adam, Sgd, SgdState
from mldd.solvers.parts import NOT_FINITE, LearningRate, LocalMemory, Pace, Rounds, RoundState


def _round(rounds: Rounds, objective: Objective, x: Tensor, state: LocalSgdState) -> Tensor:
    """Return the mean correction of a round; parts that diverged stay at x and are counted, on all ranks."""
    correction, failed = rounds.run(objective, x, state.rounds)
    parts = rounds.decomposition.parts
    state.accepted += parts - failed
    state.rejected += failed
    state.note(NOT_FINITE, failed)
    state.status = Status.diverged if failed == parts else state.rounds.status
    return correction


@dataclass(frozen=True)
class LocalSgd:
    r"""LocalSGD: ``x <- sum_i s_i y_i``, with ``y_i`` what `local_steps` steps of SGD on the loss of part i make of x.

    It is the additive nonlinear Schwarz iteration with parts of the data as subdomains, weighted by their shares s_i of
    the loss, and local models without the first-order correction: a fixed point is *not* a critical point of the loss,
    but O(lr) from one (for more than one step and parts that differ). Of a stochastic loss, local step t of every part
    sees its part of mini-batch t: with one local step the method is mini-batch gradient descent.

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
        by every part, or its vectors are averaged over the parts as x is, in the same message.
    rates : LearningRate
        How the step size of `local` changes; its steps are rounds of `local_steps` local steps each.
    growth : bool
        Whether rounds grow by the quadratic synchronisation rule: as the schedule decays by a factor, they have
        ``local_steps / factor^2`` local steps. All rounds together have as many local steps as without.
    control : bool
        Whether local gradients are shifted by control variates, the mean gradient of all parts in the last round less
        that of the part: parts that differ then drift less. One more vector in the message.
    delay : int
        Local steps of the next round that every part does while the average is under way. It then goes on from where it
        is, shifted by the average less what it had sent. 0 to wait for the average.
    together : bool
        Whether the parts of a rank are evaluated in one batch: two to four times faster for small networks with several
        parts per rank, but the last digits then depend on the number of ranks.
    comm : Communicator
        Its ranks divide the parts.

    Raises
    ------
    ValueError
        Subdomains of the unknowns, or options out of range or that do not go together.

    References
    ----------
    Stich, arXiv 1805.09767, algorithm 1 (with the average taken at every synchronisation; momentum and `memory` are
    additions). `growth`: Gu, Lyu, Arora, Zhang and Huang, arXiv 2310.14423, equation 2. `control`: Karimireddy et al.,
    arXiv 1910.06378, equation 3 with option II of equation 4, all parts taking part. `delay`: Zhou et al., arXiv
    2006.00441.
    """

    decomposition: SharedDecomposition
    local: Solver = Sgd(0.1)  # noqa: RUF009 (frozen)
    local_steps: int = 10
    memory: LocalMemory = "reset"
    rates: LearningRate = LearningRate()
    growth: bool = False
    control: bool = False
    delay: int = 0
    together: bool = False
    comm: Communicator = SERIAL

    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        _ = self.rounds

    @cached_property
    def rounds(self) -> Rounds:
        """The local steps of all parts and their average."""
        pace = Pace(self.local_steps, self.rates, self.growth)
        return Rounds(
            self.decomposition, self.local, pace, self.memory, self.control, self.delay, self.together, self.comm
        )

    def init(self, objective: Objective, x: Tensor) -> LocalSgdState:
        """Return fresh states of the local solver, where they are kept."""
        return LocalSgdState(rounds=self.rounds.init(objective, x))

    def step(self, objective: Objective, x: Tensor, state: LocalSgdState) -> tuple[Tensor, LocalSgdState]:
        """Do the local steps and one synchronisation, in place."""
        x.add_(_round(self.rounds, objective, x, state))
        return objective.bounds.project(x, out=x) if not objective.bounds.is_free else x, state


@dataclass(frozen=True)
class LocalAdam(LocalSgd):
    r"""Local Adam: Adam on the loss of every part alone, iterates and both moments averaged every `local_steps` steps.

    It is `LocalSgd` with other defaults. Where data are plentiful it needs as many steps as Adam itself and fewer
    synchronisations by the factor `local_steps`.

    Parameters
    ----------
    decomposition : SharedDecomposition
        Parts of the data or graph.
    local : Solver
        What every part does its steps with, Adam or another method that moves every unknown by its gradient alone.
    local_steps : int
        H, the steps between two synchronisations.
    memory : {"reset", "keep", "average"}
        What happens to the moments at a synchronisation.
    rates : LearningRate
        How the step size changes; its steps are rounds of `local_steps` local steps each.
    growth : bool
        Whether rounds grow as the step size decays, see `LocalSgd`.
    control : bool
        Whether local gradients are shifted by control variates, see `LocalSgd`.
    delay : int
        Local steps of the next round that are done while the average is under way, see `LocalSgd`.
    together : bool
        Whether the parts of a rank are evaluated in one batch, see `LocalSgd`.
    comm : Communicator
        Its ranks divide the parts.

    References
    ----------
    Chen, Li and Li, arXiv 2109.05109, algorithm 2 averages second moments of AMSGrad; here both moments of Adam are.
    """

    local: Solver = Adam(1e-3)  # noqa: RUF009 (frozen)
    memory: LocalMemory = "average"


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
    local_steps : int
        H, the steps between two synchronisations.
    memory : {"reset", "keep", "average"}
        What happens to the state of the local solver at a synchronisation; the parts keep it by default, as published.
    rates : LearningRate
        How the step size of `local` changes; its steps are rounds of `local_steps` local steps each.
    together : bool
        Whether the parts of a rank are evaluated in one batch, see `LocalSgd`.
    comm : Communicator
        Its ranks divide the parts.

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
    memory: LocalMemory = "keep"
    rates: LearningRate = LearningRate()
    together: bool = False
    comm: Communicator = SERIAL

    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not self.outer_lr > 0:
            raise ValueError(f"`outer_lr` must be > 0, got {self.outer_lr}")
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"`outer_momentum` must be in [0, 1), got {self.outer_momentum}")
        _ = self.rounds

    @cached_property
    def rounds(self) -> Rounds:
        """The local steps of all parts and their average."""
        pace = Pace(self.local_steps, self.rates)
        return Rounds(self.decomposition, self.local, pace, self.memory, together=self.together, comm=self.comm)

    @cached_property
    def outer(self) -> Sgd:
        """The outer iteration."""
        return Sgd(self.outer_lr, self.outer_momentum, nesterov=self.outer_momentum > 0)

    def init(self, objective: Objective, x: Tensor) -> LocalSgdState:
        """Return fresh states of the local solver, where they are kept, and of the outer momentum."""
        return LocalSgdState(rounds=self.rounds.init(objective, x), outer=self.outer.init(objective, x))

    def step(self, objective: Objective, x: Tensor, state: LocalSgdState) -> tuple[Tensor, LocalSgdState]:
        """Do the local steps, one synchronisation, and the outer step, in place."""
        d = _round(self.rounds, objective, x, state).neg_()
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
    rounds : RoundState
        With the states of the local solvers that are kept.
    outer : SgdState
        The outer momentum of DiLoCo.
    """

    rounds: RoundState = field(default_factory=RoundState)
    outer: SgdState = field(default_factory=SgdState)
