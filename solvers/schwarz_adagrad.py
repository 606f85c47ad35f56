"""DD-ADAGB2: parallel ADAGB2 iterations on subdomains, with a recursion over coarse levels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import (
    Combine,
    Decomposition,
    Hierarchy,
    MatrixTransfer,
    Objective,
    Restricted,
    split,
)
from mldd.loop import FINITE, REPLICATED, State
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.adagrad import AdaGrad, taylor_step
from mldd.solvers.multilevel_adagrad import MultilevelAdaGrad, MultilevelState, Recursion
from mldd.solvers.parts import Sweep, SweepState
from mldd.solvers.petsc import tao_minimise


@dataclass(frozen=True)
class SchwarzAdaGrad:
    r"""DD-ADAGB2: parallel ADAGB2 iterations on subdomains, combined as in additive Schwarz methods.

    One outer step does, in this order and each only if asked for,

    1. a coarse correction: a recursive iteration over `hierarchy` (see `MultilevelAdaGrad`);
    2. on every subdomain, `local_steps` ADAGB2 iterations on its local model from ``R_i x``, without communication, and
       ``x <- x + damping sum_i P_i D_i (y_i - R_i x)``, one sum over ranks;
    3. `global_steps` ADAGB2 iterations on all unknowns, which smooth the seams.

    With weights ``ras`` and ``wasm`` the result is a component-wise convex combination of feasible points; ``asm`` is
    damped by the largest multiplicity (default) or, with `damping` = 1, clipped to the box. No function value is used,
    except by `subspace_steps`.

    Parameters
    ----------
    decomposition : Decomposition
        Subdomains of parameters, or of data or graph parts.
    hierarchy : Hierarchy, optional
        Coarse levels; None or one level for a one-level method.
    local : AdaGrad
        The ADAGB2 iteration of subdomains, of coarse levels and of the global steps.
    coarse : Recursion
        How coarse levels are used. `coarse.model` is that of the nested iteration; the coarse correction of an outer
        step is nonlinear, as its smoothing is left to the subdomains.
    combine : {"ras", "wasm", "asm"}, optional
        Weights of the local corrections, see `Sweep`.
    local_steps, global_steps : int
        ADAGB2 iterations on every subdomain (at most), and on all unknowns, in an outer step.
    local_rtol : float
        A subdomain is left alone once the criticality of its local model has fallen by this factor; 0 does all
        iterations.
    subspace_steps : int
        Combine the local corrections, split by layer, in the small coarse space they span, by at most this many
        iterations of a TAO solver (options prefix ``coarse_``); 0 for the plain weighted sum. It uses function values.
    damping : float
        Factor on the combined corrections; 0 means 1 for ras and wasm, 1 / (largest multiplicity) for asm.
    comm : Communicator
        Its ranks divide the subdomains.

    Raises
    ------
    ValueError
        Parameters out of range.

    References
    ----------
    arXiv 2507.11513 (reconstructed); the small coarse space follows the subspace combination of arXiv 2601.08709.
    """

    decomposition: Decomposition
    hierarchy: Hierarchy | None = None
    local: AdaGrad = AdaGrad(model_steps=6)
    coarse: Recursion = Recursion()
    combine: Combine | None = None
    local_steps: int = 10
    local_rtol: float = 0.0
    global_steps: int = 2
    subspace_steps: int = 0
    damping: float = 0.0
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name in ("local_steps", "local_rtol", "global_steps", "subspace_steps", "damping"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        _ = self.sweep

    @cached_property
    def multilevel(self) -> MultilevelAdaGrad | None:
        """The recursion over the coarse levels."""
        if self.hierarchy is None or len(self.hierarchy) == 1:
            return None
        return MultilevelAdaGrad(self.hierarchy, self.local, replace(self.coarse, model="nonlinear"))

    @cached_property
    def sweep(self) -> Sweep:
        """The local ADAGB2 iterations; every subdomain keeps its weights from step to step."""
        return Sweep(
            self.decomposition,
            self.local,
            self.local_steps,
            self.local_rtol,
            combine=self.combine,
            damping=self.damping,
            memory="keep",
            comm=self.comm,
        )

    def init(self, objective: Objective, x: Tensor) -> SchwarzState:
        """Return fresh weights for subdomains and levels.

        Raises
        ------
        ValueError
            The objective does not offer the curvature, or has bounds where there are `subspace_steps`.
        """
        if self.subspace_steps and not objective.bounds.is_free:
            raise ValueError("`subspace_steps` needs an objective without bounds, got one with bounds; leave it out")
        made = SchwarzState(
            sweep=self.sweep.init(objective, x),
            levels=self.multilevel.init(objective, x)
            if self.multilevel
            else MultilevelState(levels=[self.local.init(objective, x)]),
            previous=torch.zeros_like(x) if self.subspace_steps else torch.empty(0),
        )
        made.notes.update(made.levels.levels[0].notes)
        for local in made.sweep.local:
            local.scale = made.levels.levels[0].scale  # of all unknowns, the same on all ranks
        return made

    def step(self, objective: Objective, x: Tensor, state: SchwarzState) -> tuple[Tensor, SchwarzState]:
        """Do one outer step, in place."""
        state.level = 0
        if self.coarse.nested and state.step == 0 and self.multilevel is not None:
            replace(self.multilevel, coarse=self.coarse).nest(objective, x, state.levels)
            return x, state
        if self.multilevel is not None:
            self._correct(objective, x, state)
        if self.local_steps:
            corrections = self.sweep.corrections(objective, x, state.sweep)
            if self.subspace_steps:
                self._combine_in_subspace(objective, x, corrections, state)
            else:
                x.add_(self.sweep.total(corrections, state.sweep))
                state.accepted += 1
            if not objective.bounds.is_free:
                objective.bounds.project(x, out=x)
        for _ in range(self.global_steps):
            taylor_step(self.local, objective, x, objective.gradient(x), objective.bounds, state.levels.levels[0])
        return x, state

    def _correct(self, objective: Objective, x: Tensor, state: SchwarzState) -> None:
        """Add the coarse correction."""
        assert self.multilevel is not None  # noqa: S101
        levels = state.levels
        levels.step, levels.level, levels.accepted, levels.rejected = state.step, 0, 0, 0
        self.multilevel.recurse(0, objective, x, objective.gradient(x), objective.bounds, levels)
        state.level = levels.level
        state.accepted += levels.accepted
        state.rejected += levels.rejected

    def _combine_in_subspace(self, objective: Objective, x: Tensor, corrections: Tensor, state: SchwarzState) -> None:
        """Minimise over ``x + D c``; columns of D are the local corrections and the previous step, split by layer."""
        weighted = self.decomposition.spread(corrections * state.sweep.weights)
        rows = torch.cat([self.comm.gather(weighted, self.decomposition.parts), state.previous[None]])
        pieces = split(rows, self.decomposition.blocks)
        norms = torch.linalg.vector_norm(pieces, dim=1)
        keep = norms > 0
        pieces, norms = pieces[keep], norms[keep]
        if not len(norms):
            return
        start = norms * self.sweep.factor
        is_previous = torch.arange(len(keep), device=x.device) % len(rows) == len(rows) - 1
        start[is_previous[keep]] = 0.0
        space = MatrixTransfer((pieces / norms[:, None]).t())
        restricted = Restricted(objective, x.clone(), space)
        c, _ = tao_minimise(restricted, start, type="lmvm", prefix="coarse_", max_steps=self.subspace_steps)
        s = space.prolong(c)
        if bool(restricted.value(c) > restricted.value(torch.zeros_like(c))):
            state.rejected += 1
            return
        state.accepted += 1
        state.previous.copy_(s)
        x.add_(s)


@dataclass
class SchwarzState(State):
    """State of DD-ADAGB2.

    Attributes
    ----------
    sweep : SweepState
        AdaGrad weights of this rank's subdomains, kept from step to step, and the weights of their corrections.
    levels : MultilevelState
        AdaGrad weights of the global steps (level 0) and of the coarse levels.
    previous : Tensor, shape (n,)
        The last step taken in the small coarse space.
    """

    sweep: SweepState = field(default_factory=SweepState)
    levels: MultilevelState = field(default_factory=MultilevelState)
    previous: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED)

    def forget(self) -> None:
        """Make no pair of gradients of two functions, on any level."""
        self.levels.forget()
