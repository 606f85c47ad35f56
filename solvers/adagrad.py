"""ADAGB2: AdaGrad for bound constraints that uses curvature where there is some, and never a function value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mldd.algebra import DIFFERENCES, Bounds, Objective, difference, hessian, offers, product_price
from mldd.loop import FINITE, REPLICATED, RISING, SCRATCH, State
from mldd.solvers.parts import Secant

Curvature = Literal["auto", "none", "exact", "diagonal", "differences", "lbfgs"]
TOO_LONG = "first steps that were too long: gone back along nine tenths of them, and the rate divided by ten"
_GROWTH, _LENGTH = 4.0, 0.5  # of the gradient's norm by a first step that is too long, and that step over the start
_SHRINK, _SHORTEST = 0.1, 1e-4
_SHARE = 0.25  # of the root mean square of the start: first steps of a network whose rate is left at 1
SCALED = "rate of a network left at 1: a quarter of the root mean square of its start is taken"


@dataclass(frozen=True)
class AdaGrad:
    r"""ADAGB2, a trust-region method without function values whose radii are those of AdaGrad.

    With ``d = project(x - g) - x`` and ``w_i <- sqrt(w_i^2 + d_i^2)``, ``w_i = varsigma`` before the first step, the
    radii are ``Delta_i = rate |d_i| / w_i`` and the step satisfies ``|s_i| <= kappa Delta_i``, the bounds, and

        g^T s + s^T B s / 2  <=  tau (g^T s_Q + s_Q^T B s_Q / 2),    s_Q = gamma s_L,

    where ``s_L = clip(-sign(g) Delta, lower - x, upper - x)`` and ``gamma = min(1, -g^T s_L / s_L^T B s_L)`` (1 without
    positive curvature). With ``B = 0`` and no bounds this is AdaGrad, ``x - rate g / w``, to the last bit of its first
    step.

    A rate that suits energies throws a network to where its units are saturated, by a first step as long as its start
    or longer. Where "auto" finds no curvature, a rate that is left at 1 is therefore taken as a quarter of the root
    mean square of the start (1 for a start at zero; `SchwarzAdaGrad` gives its subdomains that of all unknowns), and
    the gradient after the first step decides on any rate: if its norm has grown four times and the step was longer than
    half of the start, the iterate goes back along nine tenths of the step, and the rate is a tenth from then on. Notes
    say so.

    Parameters
    ----------
    varsigma : float
        Initial value of the weights w, in (0, 1].
    rate : float
        Factor on all radii (``1 / sqrt(theta)`` of ASTR1): 1 for energies, a learning rate for networks (see above).
    kappa : float
        The step may exceed the radius by this factor, >= 1.
    tau : float
        Fraction of the decrease of s_Q that makes a projected Newton step (diagonal or L-BFGS) acceptable, in (0, 1].
    curvature : {"auto", "none", "exact", "diagonal", "differences", "lbfgs"}
        B: "exact" Hessian products, the "diagonal" of the Hessian, "differences" of gradients, or "lbfgs" pairs of
        gradients; "auto" takes exact products where one costs no more than a gradient (stencils), differences where the
        objective has no products, and none otherwise.
    model_steps : int
        Projected steps that improve s_Q inside the box of radii and bounds, one product with B each.
    memory : int
        Pairs kept for "lbfgs".

    References
    ----------
    arXiv 2505.06374 (ADAGB2) and 2203.01757 (ASTR1); the step s_L with bounds and the projected model steps are a
    reconstruction.
    """

    batched: ClassVar[bool] = True  # rows of a batch do not interact

    varsigma: float = 0.01
    rate: float = 1.0
    kappa: float = 1.0
    tau: float = 1.0
    curvature: Curvature = "auto"
    model_steps: int = 3
    memory: int = 5

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not 0 < self.varsigma <= 1:
            raise ValueError(f"`varsigma` must be in (0, 1], got {self.varsigma}")
        if not self.rate > 0:
            raise ValueError(f"`rate` must be > 0, got {self.rate}")
        if not self.kappa >= 1:
            raise ValueError(f"`kappa` must be >= 1, got {self.kappa}")
        if not 0 < self.tau <= 1:
            raise ValueError(f"`tau` must be in (0, 1], got {self.tau}")
        if self.curvature not in ("auto", "none", "exact", "diagonal", "differences", "lbfgs"):
            raise ValueError(
                f"`curvature` must be auto, none, exact, diagonal, differences or lbfgs, got {self.curvature!r}"
            )

    @property
    def entrywise(self) -> bool:
        """Whether unknowns do not interact: without curvature, which "auto" does not take of networks."""
        return self.curvature in ("auto", "none")

    def init(self, objective: Objective, x: Tensor) -> AdaGradState:
        """Return weights at `varsigma` and no curvature pairs.

        Raises
        ------
        ValueError
            The objective does not offer the `curvature`.
        """
        curvature = curvature_of(self, objective)
        state = AdaGradState(squares=torch.full_like(x, self.varsigma**2), scratch=torch.empty_like(x))
        if self.curvature == "auto" and curvature == "none" and x.dim() == 1:  # rows of a batch differ by rank
            state.watched = len(x)
            size = float(torch.linalg.vector_norm(x)) / max(x.numel(), 1) ** 0.5
            if self.rate == 1.0 and 0 < _SHARE * size < 1:
                state.scale = _SHARE * size
                state.note(SCALED)
        if self.curvature == "lbfgs":
            state.pairs = Secant.empty(x, self.memory, "bfgs", sigma=1.0)
            state.last_x, state.last_g = x.clone(), torch.zeros_like(x)
        return state

    def step(self, objective: Objective, x: Tensor, state: AdaGradState) -> tuple[Tensor, AdaGradState]:
        """Do one iteration, in place."""
        g = objective.gradient(x)
        if state.watched == x.numel():
            if state.is_too_long(x, g):
                return state.go_back(x), state
            state.watch(x, g)
        taylor_step(self, objective, x, g, objective.bounds, state)
        return x, state


@dataclass
class AdaGradState(State):
    """State of ADAGB2 at one level or for a batch of subdomains.

    Attributes
    ----------
    squares : Tensor, shape (n,) or (p, m)
        ``varsigma^2 + sum of d^2``; the accumulator w is its root.
    scratch : Tensor
        Buffer.
    pairs, last_x, last_g, learned
        Curvature pairs and what the next one is made of; empty unless the curvature is "lbfgs". `learned` counts the
        gradients of the present function; the next pair needs one.
    before : Tensor, shape (n,)
        Where the first step began, empty where it is known to be of a good length.
    norm : float
        Of the gradient there.
    scale : float
        Factor on the rate, where it is left at 1 for a network.
    shrunk : float
        Factor on the rate, after first steps that were too long.
    watched : int
        Number of unknowns whose first step is not known to be of a good length: all of them, or 0.
    """

    squares: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED | RISING)
    scratch: Tensor = field(default_factory=lambda: torch.empty(0), metadata=SCRATCH)
    pairs: Secant = field(default_factory=lambda: Secant.empty(torch.empty(0), 0))
    last_x: Tensor = field(default_factory=lambda: torch.empty(0))
    last_g: Tensor = field(default_factory=lambda: torch.empty(0))
    learned: int = 0
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    norm: float = 0.0
    scale: float = 1.0
    shrunk: float = 1.0
    watched: int = 0

    def is_too_long(self, x: Tensor, g: Tensor) -> bool:
        """Return whether the first step, which has led to `x`, was too long.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        g : Tensor, shape (n,)
            The gradient there.
        """
        if len(self.before) == 0 or self.shrunk <= _SHORTEST:
            return False
        if float(torch.linalg.vector_norm(g)) <= _GROWTH * self.norm:  # false where it is not finite
            return False
        start, step = (float(torch.linalg.vector_norm(v)) for v in (self.before, x - self.before))
        return step > _LENGTH * start

    def go_back(self, x: Tensor) -> Tensor:
        """Return the iterate on the first step, nearer to where it began; the rate shrinks likewise.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Where the step has led; written to.
        """
        self.shrunk *= _SHRINK
        self.note(TOO_LONG)
        return x.sub_(self.before).mul_(_SHRINK).add_(self.before)

    def watch(self, x: Tensor, g: Tensor) -> None:
        """Remember where the first step begins; after it there is nothing to remember.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        g : Tensor, shape (n,)
            The gradient there.
        """
        if len(self.before):
            self.watched, self.before = 0, x.new_empty(0)
        else:
            self.before, self.norm = x.clone(), float(torch.linalg.vector_norm(g))

    def learn(self, x: Tensor, g: Tensor) -> None:
        """Make a curvature pair of this point and the last one.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            This point.
        g : Tensor, shape (n,) or (p, m)
            The gradient there.
        """
        if self.learned:
            self.pairs.push(x - self.last_x, g - self.last_g)
        self.last_x.copy_(x)
        self.last_g.copy_(g)
        self.learned += 1

    def forget(self) -> None:
        """Make no pair of the last gradient and the next one, which is of another function; keep the pairs."""
        if self.learned == 1:
            self.note("gradients of a sample or model of their own, without a second one for a curvature pair")
        self.learned = 0

    @property
    def accumulator(self) -> Tensor:
        """AdaGrad's weights w."""
        return self.squares.sqrt()


def taylor_step(solver: AdaGrad, f: Objective, x: Tensor, g: Tensor, bounds: Bounds, state: AdaGradState) -> None:
    """Do one ADAGB2 iteration on `x` in place, from the gradient `g`; a batch has one row per member.

    Parameters
    ----------
    solver : AdaGrad
        Its parameters.
    f : Objective
        The objective.
    x : Tensor, shape (n,) or (p, m)
        The iterate, written to.
    g : Tensor, shape (n,) or (p, m)
        The gradient there.
    bounds : Bounds
        Of the iterate.
    state : AdaGradState
        The weights, which grow.
    """
    curvature, rate = curvature_of(solver, f), solver.rate * state.scale * state.shrunk
    if curvature == "differences" and solver.curvature == "auto":
        state.note(DIFFERENCES)
    if bounds.is_free and curvature == "none":
        state.squares.addcmul_(g, g)
        x.addcdiv_(g, torch.sqrt(state.squares, out=state.scratch), value=-rate)
        return
    if curvature == "lbfgs":
        state.learn(x, g)
    d = bounds.criticality(x, g)
    state.squares.addcmul_(d, d)
    radius = d.abs_().div_(torch.sqrt(state.squares, out=state.scratch))
    if rate != 1.0:
        radius.mul_(rate)
    if bounds.is_free:
        step = torch.copysign(radius, g).neg_()
        box = None if curvature == "none" else Bounds(-solver.kappa * radius, solver.kappa * radius, False)
    else:
        step, box = _linear_step(x, g, bounds, radius, solver.kappa if curvature != "none" else 0.0)
    if box is not None:
        product, newton = _model(curvature, f, x, g, state)
        step = _finite(model_step(solver, product, g, step.clone(), box, newton), step, state)
    x.add_(step)
    if not bounds.is_free:
        bounds.project(x, out=x)  # x + (upper - x) may round to just above upper


def _finite(step: Tensor, linear: Tensor, state: AdaGradState) -> Tensor:
    """Return `step`, or the `linear` one where the curvature was not finite: that of a row concerns only this row."""
    good = torch.isfinite(step.sum(-1, keepdim=True))
    if bool(good.all()):
        return step
    state.note("steps without their curvature, which was not finite", int((~good).sum()))
    return torch.where(good, step, linear)


def _linear_step(x: Tensor, g: Tensor, bounds: Bounds, radius: Tensor, kappa: float) -> tuple[Tensor, Bounds | None]:
    """Return ``clip(-sign(g) radius, lower - x, upper - x)`` and, for kappa > 0, the box of bounds and kappa radii."""
    lower, upper = bounds.lower - x, bounds.upper - x
    if kappa == 0.0:
        return torch.copysign(radius, g).neg_().clamp_(lower, upper), None
    if kappa != 1.0:
        step = torch.copysign(radius, g).neg_().clamp_(lower, upper)
        radius.mul_(kappa)
    torch.minimum(upper, radius, out=upper)
    torch.maximum(lower, radius.neg_(), out=lower)
    if kappa == 1.0:
        step = torch.where(g > 0, lower, upper)  # the corner of the box on the side of -g; radius 0 where g = 0
    return step, Bounds(lower, upper, False)


def _model(
    curvature: str, f: Objective, x: Tensor, g: Tensor, state: AdaGradState
) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """Return the product with B and, where it is cheap, the step ``-B^{-1} g``."""
    if curvature == "exact":
        return hessian(f, x).product, None
    if curvature == "differences":
        return partial(difference, f.gradient, x, g), None
    if curvature == "diagonal":
        diagonal = f.hessian_diagonal(x)  # type: ignore[attr-defined]
        return (lambda v: diagonal * v), torch.where(diagonal > 0, -g / diagonal, -g)
    return state.pairs.product, -state.pairs.solve(g)


def curvature_of(solver: AdaGrad, f: Objective) -> str:
    """Return the curvature to use with `f`: resolves "auto" and refuses what `f` does not offer.

    Parameters
    ----------
    solver : AdaGrad
        Its parameters.
    f : Objective
        The objective.

    Raises
    ------
    ValueError
        The objective does not offer the curvature.
    """
    if solver.curvature == "auto":
        if not offers(f, "hessian_product"):
            return "differences"
        return "exact" if product_price(f) <= 1.0 else "none"
    needs = {"exact": "hessian_product", "diagonal": "hessian_diagonal"}.get(solver.curvature)
    if needs is not None and not offers(f, needs):
        raise ValueError(f"`curvature` {solver.curvature} needs an objective with `{needs}`, got none; use lbfgs")
    return solver.curvature


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product along the last axis, which is kept; one per member of a batch.

    Parameters
    ----------
    a : Tensor, shape (n,) or (p, m)
        One factor.
    b : Tensor, shape (n,) or (p, m)
        The other one.
    """
    return torch.dot(a, b).reshape(1) if a.dim() == 1 else (a * b).sum(-1, keepdim=True)


def model_step(
    solver: AdaGrad,
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    s: Tensor,
    box: Bounds,
    newton: Tensor | None = None,
) -> Tensor:
    """Return a step with a lower ``q(s) = g^T s + s^T B s / 2`` in the box, by exact steps along projected ones.

    Where a step ``-B^{-1} g`` is known, its projection takes the place of s_Q if it satisfies the condition on the
    decrease. Every further step decreases q.

    Parameters
    ----------
    solver : AdaGrad
        Its parameters.
    product : Callable[[Tensor], Tensor]
        Product with B.
    g : Tensor, shape (n,) or (p, m)
        The gradient.
    s : Tensor, shape (n,) or (p, m)
        The linear step, written to.
    box : Bounds
        Of feasible steps.
    newton : Tensor, shape (n,) or (p, m), optional
        The step ``-B^{-1} g``, where it is cheap.
    """
    Bs = product(s)
    curvature = dot(s, Bs)
    gamma = _step_length(curvature, dot(g, s))
    length = torch.where(curvature > 0, dot(s, s) / curvature, 1.0)
    s, r = s.mul_(gamma), torch.addcmul(g, Bs, gamma)
    if newton is not None:
        c = newton.clamp(box.lower, box.upper)
        Bc = product(c)
        better = dot(c, g + 0.5 * Bc) <= solver.tau * 0.5 * dot(s, g + r)
        s, r = torch.where(better, c, s), torch.where(better, g + Bc, r)
    for _ in range(solver.model_steps):
        p = torch.addcmul(s, r, -length).clamp_(box.lower, box.upper).sub_(s)
        Bp = product(p)
        curvature = dot(p, Bp)
        alpha = _step_length(curvature, dot(r, p))
        length = torch.where(curvature > 0, dot(p, p) / curvature, length)
        s.addcmul_(p, alpha)
        r.addcmul_(Bp, alpha)
    return s


def _step_length(curvature: Tensor, slope: Tensor) -> Tensor:
    """Return ``min(1, -slope / curvature)``, 1 without positive curvature, 0 if rounding makes the slope positive."""
    return torch.where(curvature > 0, torch.clamp(-slope / curvature, 0.0, 1.0), 1.0)
