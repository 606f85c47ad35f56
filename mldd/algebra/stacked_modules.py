"""Losses of one module with several sets of parameters, all of them in one sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from mldd.algebra.module_objective import FlatModule, Modes

_LOOP = "evaluated one after the other, which takes longer"


@dataclass(eq=False)
class StackedModules:
    """Evaluates a loss for p sets of parameters by ``torch.func.vmap``, as far as the module lets it.

    The first gradient is compared with that of `FlatModule`. A module that vmap cannot run (random numbers, running
    statistics, control flow that depends on data), or that does not give the same numbers, is left to a loop.

    Parameters
    ----------
    flat : FlatModule
        The module.
    loss : callable
        ``loss(module, batch)`` returns one number.
    modes : dict of nn.Module to bool
        Training modes in evaluations.
    usable : bool or None
        Whether vmap has given the numbers of the loop; None where nobody has asked yet.
    reason : str
        A sentence on why it is not used, empty where it is.
    """

    flat: FlatModule
    loss: Callable[[nn.Module, Any], Tensor]
    modes: Modes
    usable: bool | None = None
    reason: str = ""
    _names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Name the parameters in the order of the flat vector."""
        named = self.flat.module.named_parameters()
        self._names = [f"module.{name}" for name, parameter in named if parameter.requires_grad]

    def values(self, y: Tensor, batch: Any, shared: bool) -> Tensor | None:
        """Return the losses, shape (p,), None where a loop is needed.

        Parameters
        ----------
        y : Tensor, shape (p, n)
            Sets of parameters.
        batch : nest of Tensor
            Of shape (p, ...), or one for all.
        shared : bool
            Whether it is one for all.
        """
        if not self.usable:
            return None
        return self._tried(lambda: self._mapped(self._one, shared)(y, batch))  # type: ignore[no-any-return]

    def values_and_gradients(self, y: Tensor, batch: Any, shared: bool) -> tuple[Tensor, Tensor] | None:
        """Return the losses, shape (p,), and their gradients, shape (p, n), None where a loop is needed.

        Parameters
        ----------
        y, batch, shared
            As for `values`.
        """
        if self.usable is False:
            return None
        both = self._tried(lambda: self._mapped(grad_and_value(self._one), shared)(y, batch))
        if both is None:
            return None
        if self.usable is None and not self._agrees(both, y, batch, shared):
            self._leave("its gradients by vmap are others than those of a loop")
            return None
        return both[1], both[0]

    def products(self, y: Tensor, v: Tensor, batch: Any, shared: bool) -> Tensor | None:
        """Return the Hessian products ``H_i(y_i) v_i``, shape (p, n), None where a loop is needed.

        Parameters
        ----------
        y, batch, shared
            As for `values`.
        v : Tensor, shape (p, n)
            Directions.
        """
        if not self.usable:
            return None

        def product(row: Tensor, data: Any, direction: Tensor) -> Tensor:
            return grad(lambda at: (grad(self._one)(at, data) * direction).sum())(row)  # type: ignore[no-any-return]

        return self._tried(lambda: vmap(product, in_dims=(0, None if shared else 0, 0))(y, batch, v))  # type: ignore[no-any-return]

    def _one(self, row: Tensor, batch: Any) -> Tensor:
        views = dict(zip(self._names, self.flat.layout.views(row), strict=True))
        loss: Tensor = functional_call(_Held(self.flat.module, self.loss), views, (batch,))
        return loss.reshape(())

    def _mapped(self, function: Callable[..., Any], shared: bool) -> Callable[..., Any]:
        return vmap(function, in_dims=(0, None if shared else 0))

    def _tried(self, evaluate: Callable[[], Any]) -> Any:
        """Return what an evaluation returns, None where it fails: what is wrong with a loss, a loop says better."""
        try:
            with self.flat.at(self.flat.flat, modes=self.modes):
                return evaluate()
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            self._leave(f"vmap cannot run it ({type(error).__name__}: {' '.join(str(error).split())[:80]})")
            return None

    def _agrees(self, both: tuple[Tensor, Tensor], y: Tensor, batch: Any, shared: bool) -> bool:
        """Compare the last row with its own evaluation."""
        data = batch if shared else _row(batch, len(y) - 1)
        value, g = self.flat.value_and_gradient(y[-1], lambda module: self.loss(module, data), 0, self.modes)
        tolerance = torch.finfo(y.dtype).eps ** 0.6
        size = max(float(torch.linalg.vector_norm(g)), 1e-30)
        self.usable = bool((both[1][-1] - value).abs() <= tolerance * value.abs().clamp(min=1e-30)) and (
            float(torch.linalg.vector_norm(both[0][-1] - g)) <= 10 * tolerance * size
        )
        return self.usable

    def _leave(self, why: str) -> None:
        self.usable = False
        self.tell(why)

    def tell(self, why: str) -> None:
        """Remember why a loop takes the place of vmap.

        Parameters
        ----------
        why : str
            The reason, half a sentence.
        """
        self.reason = f"subdomains are {_LOOP}: {why}"


class _Held(nn.Module):
    """A loss of a module as a module's own forward, whose parameters `functional_call` can take the place of."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.module, batch)


def _row(batch: Any, k: int) -> Any:
    return torch.utils._pytree.tree_map(lambda t: t[k] if isinstance(t, Tensor) else t, batch)
