"""The parameters of an optimizer as one flat vector, and their gradients as another one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mldd.algebra import Layout, joined, relink


class FlatParameters:
    """Parameters that are views of one flat vector.

    Parameters
    ----------
    parameters : list of Parameter
        Of one dtype, on one device, each there once.

    Attributes
    ----------
    layout : Layout
        Where they lie in the vector.
    vector : Tensor, shape (n,)
        The values.

    Raises
    ------
    ValueError
        Parameters that make no flat vector, or one of no real numbers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make them views."""
        self.parameters = list(parameters)
        self.vector = self._joined()
        if not self.vector.dtype.is_floating_point:
            raise ValueError(f"parameters must be real floating point numbers, got {self.vector.dtype}")
        self.layout = Layout(tuple(tuple(p.shape) for p in self.parameters))
        self._views = self.layout.views(self.vector)

    def _joined(self) -> Tensor:
        return joined(self.parameters)

    def read(self) -> Tensor:
        """Return the vector with the values that the parameters have now.

        Returns
        -------
        Tensor, shape (n,)
            The vector itself.

        Raises
        ------
        ValueError
            A parameter that has changed its shape, dtype or device.
        """
        relink(self.parameters, self._views)
        return self.vector

    def write(self, x: Tensor) -> None:
        """Let the parameters have other values.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The values.
        """
        self.vector.copy_(x)

    def gradient(self) -> Tensor:
        """Return the gradients, zero for parameters without one.

        Returns
        -------
        Tensor, shape (n,)
            A new vector.

        Raises
        ------
        ValueError
            No parameter has a gradient, or one has none that is dense.
        """
        if all(p.grad is None for p in self.parameters):
            raise ValueError(
                "a step needs gradients of its parameters, got none; call loss.backward() in the closure, or before "
                "step(), of a module that still has the parameters the optimizer got (fully_shard exchanges them)"
            )
        for p in self.parameters:
            if p.grad is not None and p.grad.layout != torch.strided:
                raise ValueError(
                    f"gradients must be dense, got {p.grad.layout}; use sparse=False (nn.Embedding has it)"
                )
        return self._packed()

    def _packed(self) -> Tensor:
        return self.layout.pack([torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters])

    def without_gradient(self, x: Tensor) -> list[Tensor]:
        """Return the parts of a vector that belong to parameters without a gradient.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Any vector.
        """
        if all(p.grad is not None for p in self.parameters):
            return []
        pairs = zip(self.parameters, self.layout.views(x), strict=True)
        return [view for p, view in pairs if p.grad is None]

    def spoil_gradients(self) -> None:
        """Set all gradients to NaN, which shows through where the next ones are added to them."""
        for p in self.parameters:
            if p.grad is not None and p.grad.is_contiguous():
                p.grad.fill_(torch.nan)  # in place: it may be a part of a buffer of DistributedDataParallel
            elif p.grad is not None:
                p.grad = torch.full_like(p, torch.nan)  # entries may share memory

    def drop_gradients(self) -> None:
        """Leave no gradient."""
        for p in self.parameters:
            p.grad = None
