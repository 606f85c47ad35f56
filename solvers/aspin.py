"""ASPIN and RASPEN: Newton's method on a nonlinear Schwarz iteration, with Krylov solvers of PETSc."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mldd.algebra import (
    DIFFERENCES,
    Combine,
    Decomposition,
    Hierarchy,
    Objective,
    offers,
    remember,
    value_and_gradient,
    with_products,
)
from mldd.loop import Solver, State, Status
from mldd.ranks import SERIAL, Communicator, as_vec, load_petsc, read, write
from mldd.solvers.newton import Armijo, Here, NewtonCG
from mldd.solvers.parts import Subspace, Sweep, SweepState
from mldd.solvers.schwarz_jacobian import Linear, Linearised, proximal

Globalisation = Literal["trust-region", "line-search", "none"]
# Constants of the searches; the last one is how far the gradient has to fall where rounding hides the decrease of f.
_SEARCH = Armijo(c1=1e-4, backtracks=30, fall=0.75)


@dataclass(frozen=True)
class Krylov:
    """The Krylov solver of `Raspen` and `Aspin`, GMRES unless PETSc's options say otherwise.

    Parameters
    ----------
    rtol : float
        Relative tolerance of the residual in the 2-norm.
    restart : int
        Length of a cycle of GMRES. On networks the Jacobian is indefinite far from a minimiser, and short cycles
        stagnate.
    steps : int
        Most iterations.

    Raises
    ------
    ValueError
        Values out of range.
    """

    rtol: float = 1e-6
    restart: int = 300
    steps: int = 300

    def __post_init__(self) -> None:
        """Refuse values outside of their ranges."""
        for name in ("restart", "steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`krylov.{name}` must be > 0, got {getattr(self, name)}")
        if not 0 < self.rtol < 1:
            raise ValueError(f"`krylov.rtol` must be in (0, 1), got {self.rtol}")

    def solve(self, action: Callable[[Tensor], Tensor], b: Tensor, prefix: str = "") -> tuple[Tensor, int, int]:
        """Solve ``A d = b`` with PETSc's KSP on this rank, GMRES without preconditioner unless the options differ.

        Parameters
        ----------
        action : callable
            Product with A.
        b : Tensor, shape (n,)
            Right-hand side.
        prefix : str
            Of the options in PETSc's database.

        Returns
        -------
        d : Tensor, shape (n,)
            The solution.
        iterations : int
            How many there were.
        reason : int
            PETSc's converged reason, negative where it has not converged.
        """
        P, shell = load_petsc(), _Shell(action, b)
        rhs, d = as_vec(b), as_vec(torch.zeros_like(b))
        mat = P.Mat().createPython((len(b), len(b)), shell, comm=P.COMM_SELF)
        ksp = P.KSP().create(P.COMM_SELF)
        try:
            mat.setUp()
            ksp.setOptionsPrefix(prefix)
            ksp.setOperators(mat)
            ksp.setType("gmres")
            ksp.setGMRESRestart(self.restart)
            ksp.getPC().setType("none")
            # Single precision cannot do better than its rounding.
            rtol = max(self.rtol, 100.0 * torch.finfo(b.dtype).eps)
            ksp.setTolerances(rtol=rtol, atol=0.0, max_it=self.steps)
            ksp.setFromOptions()
            ksp.solve(rhs, d)
            return read(d, torch.empty_like(b)), int(ksp.getIterationNumber()), int(ksp.getConvergedReason())
        except P.Error:
            if shell.error is not None:
                raise shell.error from None
            raise
        finally:
            for item in (ksp, mat, rhs, d):
                item.destroy()


@dataclass(frozen=True)
class Raspen:
    r"""RASPEN: Newton's method for ``F(x) = G(x) - x = 0``, G being one sweep of nonlinear restricted additive Schwarz.

    With exact local solves C_i, ``R_i grad f(x + P_i C_i(x)) = 0``, the function and the *exact* action of its Jacobian
    are

        F(x) = sum_i P_i D_i C_i(x),    F'(x) w = - sum_i P_i D_i H_i^{-1} R_i H(v_i) w,    v_i = x + P_i C_i(x),

    H the Hessian of f and ``H_i = R_i H(v_i) P_i``; the second follows from differentiating the condition on C_i. Zeros
    of F are the stationary points of f. GMRES solves ``F'(x) d = -F(x)``, by one sum over ranks per iteration.

    With a coarse level G is the composition of a coarse correction in the full approximation scheme, ``grad f_0(y0 + c)
    = grad f_0(y0) - R_0 grad f(x)`` with ``y0 = inject(x)``, and of the sweep from ``x + P_0 c``; the Jacobian is that
    of the composition. Where f offers no Hessian products, differences of its gradients take their place, with a note.

    The step is decided by f. "trust-region": the better of d, cut back to the radius, and of the minimiser of the
    quadratic model of f in the span of d, F(x) and g within it. "line-search": Armijo's rule along d; where d is not a
    descent direction or the search fails, along the Schwarz correction F(x), then along -g. Both take plain Newton
    steps where these are good, so on problems with a convex energy; on networks the trust region takes fewer steps.
    What is not a plain Newton step is noted in the state, as is negative curvature: where H_i is not positive definite
    it is replaced by ``|H_i|`` (or shifted, where CG solves).

    Parameters
    ----------
    decomposition : Decomposition
        Of the unknowns; its local models must be restrictions of the objective.
    hierarchy : Hierarchy, optional
        The finest level and one coarse level.
    local : Solver
        Local solver. The Jacobian is that of exact solves: where the gradient of a local model has not fallen by a
        factor of 100, the step is a damped Schwarz step along F(x) instead, and a note says so.
    local_steps : int
        Most steps of it.
    combine : {"ras", "wasm", "asm"}
        The weights D_i.
    mu : float
        Weight of a proximal term ``mu/2 ||c||^2`` in the local problems, for networks: their local minimisers may lie
        at infinity, or be no points but valleys. The zeros of F stay the same, and ``H_i + mu`` takes the place of H_i
        in the Jacobian, which stays exact.
    krylov : Krylov
        Solver of the linear systems with the Jacobian.
    globalisation : {"trust-region", "line-search", "none"}
        "none" takes all of d.
    dense : int
        Most unknowns of a subdomain for dense local Hessians; systems with longer ones are solved by CG.
    prefix : str
        Of the Krylov solver's options in PETSc's database: ``-raspen_ksp_monitor``.
    comm : Communicator
        Its ranks share the subdomains; all run the same Krylov iteration on the same vectors.

    Raises
    ------
    ValueError
        Hyper-parameters out of range.

    References
    ----------
    Dolean, Gander, Kheriji, Kwok and Masson, SIAM J. Sci. Comput. 38 (2016), arXiv 1605.04419. The details of the two
    levels and both globalisations are a reconstruction; the paper takes plain Newton steps.
    """

    decomposition: Decomposition
    hierarchy: Hierarchy | None = None
    local: Solver = NewtonCG(rtol=1e-10)  # noqa: RUF009 (frozen)
    local_steps: int = 50
    combine: Combine = "ras"
    mu: float = 0.0
    krylov: Krylov = Krylov()
    globalisation: Globalisation = "trust-region"
    dense: int = 512
    prefix: str = "raspen_"
    comm: Communicator = SERIAL

    exact: ClassVar[bool] = True
    name: ClassVar[str] = "raspen"

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not self.local_steps > 0:
            raise ValueError(f"`local_steps` must be > 0, got {self.local_steps}")
        for name in ("dense", "mu"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        known = ("trust-region", "line-search", "none")
        if self.globalisation not in known:
            raise ValueError(f"`globalisation` must be one of {', '.join(known)}, got {self.globalisation!r}")
        if self.hierarchy is not None and len(self.hierarchy) > 2:
            raise ValueError(f"`hierarchy` must have 1 or 2 levels, got {len(self.hierarchy)}")
        if not isinstance(self.decomposition, Decomposition) or self.decomposition.corrected:
            raise ValueError(
                f"{self.name} needs subdomains of the unknowns, whose local models are restrictions of the objective, "
                "got parts of the data or the graph; use schwarz, or a decomposition of the parameters"
            )
        _ = self.sweep

    @cached_property
    def sweep(self) -> Sweep:
        """The local solves and their weighted sum, not damped."""
        d = proximal(self.decomposition, self.mu) if self.mu > 0 else self.decomposition
        return Sweep(d, self.local, self.local_steps, combine=self.combine, damping=1.0, comm=self.comm)

    def init(self, objective: Objective, x: Tensor) -> AspinState:
        """Return an empty state.

        Raises
        ------
        ValueError
            The objective has bounds.
        ImportError
            PETSc is missing.
        """
        if not objective.bounds.is_free:
            raise ValueError(f"{self.name} needs an objective without bounds, got one with bounds; use schwarz")
        if x.dtype != torch.float64:
            warnings.warn(f"{self.name} is made for float64, got {x.dtype}: its steps are inexact", stacklevel=2)
        load_petsc()
        return AspinState(sweep=self.sweep.init(objective, x), value=x.new_tensor(math.nan))

    def step(self, objective: Objective, x: Tensor, state: AspinState) -> tuple[Tensor, AspinState]:
        """Do one Newton step on F, in place."""
        g = objective.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or a point that was moved from outside
            state.value = objective.value(x)
        if not math.isfinite(float(state.value)):
            state.status = Status.diverged
            return x, state
        if state.floor < 0.0:
            state.floor = torch.finfo(x.dtype).eps ** 0.5 * float(g.norm())
        if not offers(objective, "hessian_product"):
            state.note(DIFFERENCES)
        f = with_products(objective, x, g)
        F, here = self.linearise(f, x, state), Here(state.value, g)
        F.report(state)
        if F.unsolved:
            state.note("local problems not solved, a damped Schwarz step in place of a Newton step", F.unsolved)
            self._search_along(f, x, [F.residual, _scaled(g, F.residual)], here, state)
            remember(objective, x, g if state.gradient is None else state.gradient)
            return x, state
        d, state.iterations, reason = self.krylov.solve(F.negative_product, F.residual, self.prefix)
        state.krylov += state.iterations
        if reason < 0:
            state.note("the Krylov solver has missed its tolerance")
        if self.globalisation == "none":
            x.add_(d)
            state.gradient = None
        elif self.globalisation == "line-search":
            self._search_along(f, x, [d, F.residual, _scaled(g, F.residual)], here, state)
        else:
            self._search_within(f, x, d, F.residual, here, state)
        if state.gradient is not None:
            remember(objective, x, state.gradient)
        return x, state

    def linearise(self, objective: Objective, x: Tensor, state: AspinState) -> Linearised:
        """Return F and its Jacobian at `x`.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The iterate.
        state : AspinState
            Of the sweep, for the local solvers.
        """
        coarse = self.hierarchy[1] if self.hierarchy is not None and len(self.hierarchy) == 2 else None
        linear = Linear(self.dense, max(1e-3 * self.krylov.rtol, 1e-12), 10 * self.krylov.steps)
        return Linearised(self.sweep, coarse, self.exact, linear, objective, x, state.sweep, state.floor)

    def _search_along(self, f: Objective, x: Tensor, directions: list[Tensor], here: Here, state: AspinState) -> None:
        """Go along the first of the directions on which f falls."""
        for k, d in enumerate(directions):
            # The angle to -g keeps rounding from passing for descent.
            cosine = float(torch.dot(here.g, d) / (d.norm() * here.g.norm()))
            if not cosine < -1e-12:  # nor where something is not finite
                continue
            found = _SEARCH.run(f, x, d, here, torch.ones_like(here.values, dtype=torch.bool))
            if bool(found.moved):
                if k > 0:
                    state.rejected += 1
                    state.note(("Schwarz step", "gradient step")[k - 1] + " in place of a Newton step")
                state.accepted += k == 0
                self._take(x, found.step, found.values, found.g, state)
                return
        self._stall(here, state)

    def _search_within(
        self, f: Objective, x: Tensor, d: Tensor, residual: Tensor, here: Here, state: AspinState
    ) -> None:
        """Shrink the trust region until f falls as the model says it does."""
        space, start, norm = Subspace.of(f, x, here.g, [d, residual, here.g]), float(here.values), float(here.g.norm())
        noise, length = 10.0 * torch.finfo(x.dtype).eps * abs(start), float(d.norm())
        state.note("negative curvature in the trust region", int(space.lowest < 0))
        if state.radius == 0.0:
            state.radius = max(length, float(residual.norm())) if math.isfinite(length) else float(residual.norm())
        for _ in range(_SEARCH.backtracks):
            s, decrease = space.minimise(state.radius)
            newton = d * min(1.0, state.radius / length) if 0 < length < math.inf else s
            trials = [(step, *value_and_gradient(f, x + step)) for step in (newton, s)]
            blind = decrease <= noise
            s, value, g = min(trials, key=lambda trial: _rank(trial[2].norm() if blind else trial[1]))  # noqa: B023
            falls = float(g.norm()) <= _SEARCH.fall * norm and float(value) <= start + noise
            gain = start - float(value)
            if falls if blind else gain >= _SEARCH.c1 * decrease:
                if not blind and gain < 0.25 * decrease:
                    state.radius = 0.5 * float(s.norm())
                elif not blind and gain > 0.75 * decrease and float(s.norm()) > 0.8 * state.radius:
                    state.radius *= 2.0
                state.accepted += 1
                self._take(x, s, value, g, state)
                return
            if blind:
                break
            state.rejected += 1
            state.radius = 0.25 * min(state.radius, float(s.norm()))
        self._stall(here, state)

    def _take(self, x: Tensor, step: Tensor, value: Tensor, g: Tensor, state: AspinState) -> None:
        x.add_(step)
        state.value, state.gradient = value, g

    def _stall(self, here: Here, state: AspinState) -> None:
        state.gradient = here.g
        state.status = Status.stalled if bool((here.g != 0).any()) else Status.converged_atol


@dataclass(frozen=True)
class Aspin(Raspen):
    r"""ASPIN: Newton's method on ``F(x) = sum_i P_i C_i(x)``, nonlinear additive Schwarz, with an approximate Jacobian.

    With the total correction ``u = x + sum_i P_i C_i(x)`` and ``H_i(u) = R_i H(u) P_i`` it is

        F'(x) w ~ - sum_i P_i H_i(u)^{-1} R_i H(u) w,

    the linear additive Schwarz preconditioner times the Hessian, both at u: one Hessian product of the whole objective
    per iteration of GMRES. At a solution it is the exact Jacobian. (Taking H_i at ``x + P_i C_i(x)`` and H at u, the
    other reading of the method, diverged in our tests without a globalisation.) Everything else is as for `Raspen`.

    Parameters
    ----------
    combine : Combine
        The weights, as for `Raspen`.
    prefix : str
        Of the Krylov solver's options in PETSc's database.

    References
    ----------
    Cai and Keyes, SIAM J. Sci. Comput. 24 (2002); PETSc's SNESASPIN.
    """

    combine: Combine = "asm"
    prefix: str = "aspin_"

    exact: ClassVar[bool] = False
    name: ClassVar[str] = "aspin"


@dataclass
class AspinState(State):
    """State of `Aspin` and `Raspen`.

    Attributes
    ----------
    sweep : SweepState
        What the sweep keeps.
    krylov, iterations : int
        Iterations of the Krylov solver so far, and in the last step.
    value : Tensor, shape ()
        Objective at the iterate, valid for the `gradient` that came with it.
    gradient : Tensor or None
        The gradient at the iterate, where it is known.
    radius : float
        Of the trust region, 0 before the first step.
    floor : float
        Norm of a local gradient below which a local problem counts as solved, negative before the first step.
    """

    sweep: SweepState = field(default_factory=SweepState)
    krylov: int = 0
    iterations: int = 0
    value: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    gradient: Tensor | None = field(default=None, repr=False)
    radius: float = 0.0
    floor: float = -1.0


class _Shell:
    """The methods of a PETSc matrix of type python: a function of tensors."""

    def __init__(self, action: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._action, self._v = action, torch.empty_like(like)
        self.error: BaseException | None = None

    def mult(self, mat: Any, v: Any, out: Any) -> None:
        """Write ``A v`` to `out`; PETSc would replace an exception by an error code, so it is kept."""
        try:
            write(self._action(read(v, self._v)), out)
        except BaseException as error:
            self.error = error
            raise


def _scaled(g: Tensor, like: Tensor) -> Tensor:
    """Return -g, no longer than `like`."""
    length, wanted = float(g.norm()), float(like.norm())
    return -g * (wanted / length) if 0 < wanted < length else -g


def _rank(number: Tensor) -> float:
    """Return a number for comparisons, infinity where it is not finite."""
    return float(number) if math.isfinite(float(number)) else math.inf
