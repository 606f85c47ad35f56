"""Losses of torch modules as functions of one flat vector; no evaluation changes the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from mldd.algebra.bounds import Bounds
from mldd.algebra.cost import Price
from mldd.algebra.flatten import Layout, joined, relink, trainable

Loss = Callable[[nn.Module], Tensor]
Modes = Mapping[nn.Module, bool]  # whether a module is to be in training mode while it is evaluated


@dataclass(frozen=True, eq=False)
class FlatModule:
    """A module as a function of the flat vector of its trainable parameters, which become views of such a vector.

    An evaluation lets the parameters be views of the given vector: no copy. It leaves the module as it was: parameters,
    buffers (running statistics of batch normalisation), modes, and torch's random generators, which every evaluation
    starts from the same seed. A loss may differentiate inside, by inputs or parameters, so values are computed with
    autograd switched on.

    Parameters
    ----------
    module : nn.Module
        Its trainable parameters of one dtype on one device; several flat modules may share a module.
    """

    module: nn.Module
    _flat: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the parameters views of one vector."""
        object.__setattr__(self, "_flat", joined(self._leaves))

    @cached_property
    def layout(self) -> Layout:
        """Where the parameters lie, one layer per tensor."""
        return Layout(tuple(tuple(p.shape) for p in self._leaves))

    @cached_property
    def _leaves(self) -> list[nn.Parameter]:
        return trainable(self.module)

    def _current(self) -> list[nn.Parameter]:
        """Return the parameters, refusing a module that has others by now: an evaluation would not reach those."""
        now = trainable(self.module)
        if len(now) != len(self._leaves) or any(a is not b for a, b in zip(now, self._leaves, strict=True)):
            raise ValueError(
                "`module` must keep the trainable parameters it was given with, got others (by requires_grad_ or "
                "load_state_dict(assign=True)?); make the objective afterwards"
            )
        return now

    @property
    def flat(self) -> Tensor:
        """The module's parameters as one vector, shape (n,), also where another objective had joined them since."""
        relink(self._current(), self.layout.views(self._flat))
        return self._flat

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self._flat)

    def load(self, x: Tensor) -> nn.Module:
        """Copy `x` into the module for good, and return the module.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        """
        self.flat.copy_(x)
        return self.module

    @contextmanager
    def at(self, x: Tensor, noise: int = 0, modes: Modes | None = None) -> Iterator[list[nn.Parameter]]:
        """Yield the parameters while the module has those of `x`; afterwards it is as it was before.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        noise : int
            Seed of torch's generators inside.
        modes : mapping of nn.Module to bool, optional
            Training modes inside; the modules' own by default.

        Yields
        ------
        list of Parameter
            In the order of the layout.
        """
        leaves = self._current()
        home = [p.data for p in leaves]
        with _unchanged(self.module, modes), _seeded(noise, x.device), torch.enable_grad():
            for parameter, view in zip(leaves, self.layout.views(x.detach()), strict=True):
                parameter.data = view
            try:
                yield leaves
            finally:
                for parameter, view in zip(leaves, home, strict=True):
                    parameter.data = view

    def value(self, x: Tensor, loss: Loss, noise: int = 0, modes: Modes | None = None) -> Tensor:
        """Return a loss, shape ().

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        loss : callable
            ``loss(module)`` returns one number.
        noise, modes
            As for `at`.

        Raises
        ------
        ValueError
            The loss is no number.
        """
        with self.at(x, noise, modes):
            return _number(loss(self.module)).detach()

    def value_and_gradient(
        self, x: Tensor, loss: Loss, noise: int = 0, modes: Modes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a loss, shape (), and its gradient, shape (n,), in one sweep.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        loss : callable
            ``loss(module)`` returns one number.
        noise, modes
            As for `at`.

        Raises
        ------
        ValueError
            The loss is no number, or does not depend on the parameters.
        """
        with self.at(x, noise, modes) as leaves:
            value = _differentiable(_number(loss(self.module)))
            return value.detach(), self.layout.pack(_filled(value, leaves))

    def hessian_product(self, x: Tensor, v: Tensor, loss: Loss, noise: int = 0, modes: Modes | None = None) -> Tensor:
        """Return ``H(x) v`` of a loss by differentiating ``<g, v>``.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        v : Tensor, shape (n,)
            The direction.
        loss : callable
            ``loss(module)`` returns one number.
        noise, modes
            As for `at`.

        Raises
        ------
        ValueError
            The loss is no number, or does not depend on the parameters.
        """
        with self.at(x, noise, modes) as leaves:
            g = _filled(_differentiable(_number(loss(self.module))), leaves, create_graph=True)
            slope = sum((a * b).sum() for a, b in zip(g, self.layout.views(v), strict=True))
            assert isinstance(slope, Tensor)
            return self.layout.pack(_filled(slope, leaves))


@dataclass(frozen=True)
class ModuleObjective:
    """The objective ``x -> loss(module with parameters x)`` of any torch module, evaluated as `FlatModule` says.

    Parameters
    ----------
    module : nn.Module
        Its trainable parameters become views of `flat`. Several objectives may share a module.
    loss : callable
        ``loss(module)`` returns a scalar tensor.
    bounds : Bounds, optional
        None by default.
    price : Price
        What evaluations cost.
    noise : int
        Seed of torch's generators in every evaluation: dropout is the same in all of them.

    Examples
    --------
    >>> module = nn.Linear(1, 1, bias=False)
    >>> f = ModuleObjective(module, lambda m: (m(torch.ones(1)) - 3).square().sum())
    >>> f.gradient(torch.tensor([1.0]))
    tensor([-4.])
    """

    module: nn.Module
    loss: Loss
    bounds: Bounds = field(default=None)  # type: ignore[assignment]
    price: Price = Price()  # noqa: RUF009 (frozen)
    noise: int = 0

    def __post_init__(self) -> None:
        """Flatten the module."""
        if self.bounds is None:
            flat = self._model.flat
            object.__setattr__(self, "bounds", Bounds.free(self.size, dtype=flat.dtype, device=flat.device))

    @cached_property
    def _model(self) -> FlatModule:
        return FlatModule(self.module)

    @property
    def layout(self) -> Layout:
        """Where the parameters lie, one layer per tensor."""
        return self._model.layout

    @property
    def flat(self) -> Tensor:
        """The module's parameters as one vector, shape (n,), also where another objective had joined them since."""
        return self._model.flat

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self._model.size

    def initial(self) -> Tensor:
        """Return a copy of the module's parameters, shape (n,)."""
        return self.flat.clone()

    def load(self, x: Tensor) -> nn.Module:
        """Copy `x` into the module for good, and return the module.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        """
        return self._model.load(x)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape ()."""
        self.price.of_value()
        return self._model.value(x, self.loss, self.noise)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, shape (n,)."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient in one sweep.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters in the order of the layout.
        """
        self.price.of_gradient()
        return self._model.value_and_gradient(x, self.loss, self.noise)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``."""
        self.price.of_product()
        return self._model.hessian_product(x, v, self.loss, self.noise)


@contextmanager
def _unchanged(module: nn.Module, modes: Modes | None) -> Iterator[None]:
    """Yield nothing; inside, `module` has copies of its buffers, and modes that are its own again afterwards."""
    own = [(m, m.training, dict(m._buffers)) for m in module.modules()]
    copies = {id(b): b.detach().clone() for _, _, held in own for b in held.values() if b is not None}
    for m, training, held in own:
        if held:
            m._buffers.update((name, b if b is None else copies[id(b)]) for name, b in held.items())
        if modes is not None and modes.get(m, training) != training:
            m.training = not training
    try:
        yield
    finally:
        for m, training, held in own:
            if m._buffers or held:
                m._buffers.clear()
                m._buffers.update(held)
            if m.training != training:  # setting an attribute of a module is slow
                m.training = training


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Yield nothing; inside, torch's generators start from the seed, and afterwards they are as before."""
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu):
        torch.default_generator.manual_seed(seed)
        for gpu in on_gpu:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def _number(loss: Tensor) -> Tensor:
    """Return `loss` as a tensor of shape (), refusing several numbers."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"`loss` must return one number as a tensor, got {got}; use .mean() or reduction='mean'")
    return loss.reshape(())


def _differentiable(loss: Tensor) -> Tensor:
    """Return `loss`, refusing one that autograd knows nothing of: its gradient would be taken for zero."""
    if not loss.requires_grad:
        raise ValueError(
            "`loss` must depend on the parameters through autograd, got a constant; leave out detach, item, no_grad "
            "and inference_mode in it"
        )
    return loss


def _filled(value: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Differentiate; a parameter that `value` does not depend on has the gradient zero."""
    if not value.requires_grad:  # the slope of a linear function
        return [torch.zeros_like(p) for p in leaves]
    g = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if d is None else d for d, p in zip(g, leaves, strict=True)]
