"""Single-level baselines: Adam, SGD and torch's AdaGrad.

They equal their namesakes in ``torch.optim`` step for step (weight decay belongs to the objective), act
entry by entry and so work on batches of subdomains too, and honour bounds by projection after each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import Objective
from mldd.loop import FINITE, REPLICATED, RISING, SCRATCH, State
from mldd.solvers.parts import LearningRate


def _positive(**settings: float) -> None:
    """Refuse hyper-parameters that are not positive, or not finite."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be > 0, got {value}")
        if value == math.inf:
            raise ValueError(f"`{name}` must be finite, got {value}")


def _fractions(**settings: float) -> None:
    """Refuse hyper-parameters outside [0, 1)."""
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must be in [0, 1), got {value}")


def _project(objective: Objective, x: Tensor) -> Tensor:
    """Clip `x` to the bounds, in place."""
    bounds = objective.bounds
    return x if bounds.is_free else bounds.project(x, out=x)


@dataclass
class AdamState(State):
    """State of `Adam`.

    Attributes
    ----------
    mean, square : Tensor, shape (n,) or (p, m)
        Running means of the gradient and of its square.
    scratch : Tensor
        Buffer.
    count : int
        Steps in the means.
    """

    mean: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED)
    square: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED)
    scratch: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=SCRATCH)
    count: int = 0


@dataclass(frozen=True)
class Adam:
    """``x <- x - lr / (1 - beta1^k) m / (sqrt(v / (1 - beta2^k)) + eps)``, then projected.

    Parameters
    ----------
    lr : float
        Step size.
    beta1, beta2 : float
        Decay of the running means m of g and v of g^2, in [0, 1).
    eps : float
        Added to the root of v, > 0.
    rates : LearningRate
        How the step size changes with the steps.

    Raises
    ------
    ValueError
        A step size or `eps` that is not positive, or a decay outside [0, 1).

    References
    ----------
    Kingma and Ba, arXiv 1412.6980, algorithm 1; the arithmetic is that of ``torch.optim.Adam``.
    """

    batched: ClassVar[bool] = True  # rows of a batch do not interact
    entrywise: ClassVar[bool] = True  # nor do its entries

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    rates: LearningRate = LearningRate()

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        _positive(lr=self.lr, eps=self.eps)
        _fractions(beta1=self.beta1, beta2=self.beta2)

    def init(self, objective: Objective, x: Tensor) -> AdamState:
        """Return means of zero."""
        self.rates.factor(0)  # a schedule without its length is refused here
        return AdamState(mean=torch.zeros_like(x), square=torch.zeros_like(x), scratch=torch.empty_like(x))

    def step(self, objective: Objective, x: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        """Do one step in place."""
        g = objective.gradient(x)
        state.count += 1
        state.mean.lerp_(g, 1 - self.beta1)
        state.square.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        correction = 1 - self.beta2**state.count
        root = torch.sqrt(state.square, out=state.scratch).div_(correction**0.5).add_(self.eps)
        lr = self.lr * self.rates.factor(state.step)
        x.addcdiv_(state.mean, root, value=-lr / (1 - self.beta1**state.count))
        self.rates.end(state, state.step + 1)
        return _project(objective, x), state

    @property
    def memory_decay(self) -> dict[str, float]:
        """Factor by which a step shrinks what every vector of the state was before."""
        return {"mean": self.beta1, "square": self.beta2}


@dataclass
class SgdState(State):
    """State of `Sgd`.

    Attributes
    ----------
    momentum : Tensor or None
        The momentum, shape of x; None without.
    scratch : Tensor or None
        Buffer for Nesterov's momentum.
    """

    momentum: Tensor | None = field(default=None, metadata=FINITE | REPLICATED)
    scratch: Tensor | None = field(default=None, repr=False, metadata=SCRATCH)


@dataclass(frozen=True)
class Sgd:
    """``m <- momentum m + g``, ``x <- x - lr m`` (Nesterov: ``x <- x - lr (g + momentum m)``), then projected.

    Parameters
    ----------
    lr : float
        Step size.
    momentum : float
        In [0, 1); 0 is gradient descent.
    nesterov : bool
        Take Nesterov's momentum.
    rates : LearningRate
        How the step size changes with the steps.

    Raises
    ------
    ValueError
        A step size that is not positive, a momentum outside [0, 1), or Nesterov's without momentum.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, ICML 2013, equations 1 to 4; the arithmetic is that of ``torch.optim.SGD``.
    """

    batched: ClassVar[bool] = True  # rows of a batch do not interact
    entrywise: ClassVar[bool] = True  # nor do its entries

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    rates: LearningRate = LearningRate()

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        _positive(lr=self.lr)
        _fractions(momentum=self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` needs `momentum` > 0, got 0; set momentum=0.9")

    def init(self, objective: Objective, x: Tensor) -> SgdState:
        """Return a momentum of zero."""
        self.rates.factor(0)  # a schedule without its length is refused here
        return SgdState(
            momentum=torch.zeros_like(x) if self.momentum else None,
            scratch=torch.empty_like(x) if self.nesterov else None,
        )

    def step(self, objective: Objective, x: Tensor, state: SgdState) -> tuple[Tensor, SgdState]:
        """Do one step in place."""
        g = objective.gradient(x)
        if state.momentum is not None:
            m = state.momentum.mul_(self.momentum).add_(g)
            g = m if state.scratch is None else torch.add(g, m, alpha=self.momentum, out=state.scratch)
        x.add_(g, alpha=-self.lr * self.rates.factor(state.step))
        self.rates.end(state, state.step + 1)
        return _project(objective, x), state

    @property
    def memory_decay(self) -> dict[str, float]:
        """Factor by which a step shrinks what every vector of the state was before."""
        return {"momentum": self.momentum}


@dataclass
class TorchAdaGradState(State):
    """State of `TorchAdaGrad`.

    Attributes
    ----------
    squares : Tensor, shape (n,) or (p, m)
        Sum of squared gradients.
    scratch : Tensor
        Buffer.
    """

    squares: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED | RISING)
    scratch: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=SCRATCH)


@dataclass(frozen=True)
class TorchAdaGrad:
    """``v <- v + g^2``, ``x <- x - lr g / (sqrt(v) + eps)``, then projected.

    Parameters
    ----------
    lr : float
        Step size.
    initial : float
        Initial value of v.
    eps : float
        Added to the root of v, > 0.

    Raises
    ------
    ValueError
        A step size or `eps` that is not positive, or a negative initial value.

    References
    ----------
    Duchi, Hazan and Singer, JMLR 12 (2011), figure 1; the arithmetic is that of ``torch.optim.Adagrad``.
    """

    batched: ClassVar[bool] = True  # rows of a batch do not interact
    entrywise: ClassVar[bool] = True  # nor do its entries

    lr: float = 1e-2
    initial: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        _positive(lr=self.lr, eps=self.eps)
        if not self.initial >= 0:
            raise ValueError(f"`initial` must be >= 0, got {self.initial}")

    def init(self, objective: Objective, x: Tensor) -> TorchAdaGradState:
        """Return the initial sum."""
        return TorchAdaGradState(squares=torch.full_like(x, self.initial), scratch=torch.empty_like(x))

    def step(self, objective: Objective, x: Tensor, state: TorchAdaGradState) -> tuple[Tensor, TorchAdaGradState]:
        """Do one step in place."""
        g = objective.gradient(x)
        state.squares.addcmul_(g, g)
        x.addcdiv_(g, torch.sqrt(state.squares, out=state.scratch).add_(self.eps), value=-self.lr)
        return _project(objective, x), state
