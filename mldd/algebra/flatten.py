"""One flat vector for many tensors: layouts, and parameters of torch modules that are views of such a vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a model lie in its flat vector.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Shapes of the tensors, in order.
    layers : tuple of int, optional
        The layer of every tensor, ascending from 0; by default each tensor is a layer of its own.

    Raises
    ------
    ValueError
        No tensor, or layers that do not fit.

    Examples
    --------
    >>> layout = Layout(((2, 3), (3,), (3, 1), (1,)), (0, 0, 1, 1))
    >>> layout.size, layout.blocks
    (13, (9, 4))
    >>> [tuple(view.shape) for view in layout.views(torch.zeros(5, 13))]
    [(5, 2, 3), (5, 3), (5, 3, 1), (5, 1)]
    """

    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the layers, or number them."""
        if not self.shapes:
            raise ValueError("a layout needs at least one tensor, got none")
        layers = self.layers or tuple(range(len(self.shapes)))
        steps = [b - a for a, b in zip(layers, layers[1:], strict=False)]
        if len(layers) != len(self.shapes) or layers[0] != 0 or any(step not in (0, 1) for step in steps):
            raise ValueError(f"`layers` must number {len(self.shapes)} tensors 0, 1, ... ascending, got {layers}")
        object.__setattr__(self, "layers", layers)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of unknowns of each tensor."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def offsets(self) -> list[int]:
        """Where each tensor begins, and the end of the last."""
        return [sum(self.sizes[:k]) for k in range(len(self.sizes) + 1)]

    @cached_property
    def size(self) -> int:
        """Number N of unknowns."""
        return sum(self.sizes)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Number of unknowns of each layer."""
        pairs = list(zip(self.layers, self.sizes, strict=True))
        return tuple(sum(size for of, size in pairs if of == layer) for layer in range(self.layers[-1] + 1))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The unknowns of each layer."""
        ends = [sum(self.blocks[:k]) for k in range(len(self.blocks) + 1)]
        return tuple(slice(a, b) for a, b in zip(ends, ends[1:], strict=False))

    @cached_property
    def layer(self) -> Tensor:
        """The layer of every unknown, shape (N,), int64."""
        return torch.repeat_interleave(torch.tensor(self.layers), torch.tensor(self.sizes))

    def views(self, x: Tensor) -> list[Tensor]:
        """Return the tensors as views of `x`, shape (..., N), with its leading axes kept; nothing is copied.

        Parameters
        ----------
        x : Tensor, shape (..., N)
            Flat vectors.
        """
        lead = x.shape[:-1]
        pieces = torch.split(x, self.sizes, dim=-1)
        return [piece.view((*lead, *shape)) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def leaves(self, x: Tensor) -> list[Tensor]:
        """Return the views, each a leaf that autograd differentiates for: cheaper than going through `x`.

        Parameters
        ----------
        x : Tensor, shape (..., N)
            Flat vectors.
        """
        return [view.requires_grad_() for view in self.views(x.detach())]

    def pack(self, tensors: Sequence[Tensor], *extra: Tensor) -> Tensor:
        """Return one new vector, shape (..., N), of tensors of these shapes (`extra` ones behind, for joint sums).

        Parameters
        ----------
        tensors : Sequence of Tensor
            One per tensor of the layout, with the same leading axes.
        *extra : Tensor
            Numbers or vectors that are appended.
        """
        lead = tensors[0].dim() - len(self.shapes[0])
        return torch.cat([t.flatten(lead) if t.dim() > lead else t[..., None] for t in (*tensors, *extra)], dim=-1)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters, shared ones once.

    Parameters
    ----------
    module : nn.Module
        Any module.

    Raises
    ------
    ValueError
        It has none, some that a first call makes, or complex ones.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        raise ValueError(f"parameters must have shapes, got lazy ones in {type(module).__name__}; call it once before")
    if not parameters:
        raise ValueError(f"`module` must have a trainable parameter, got none in {type(module).__name__}")
    for p in parameters:
        if not p.dtype.is_floating_point:
            raise ValueError(
                f"trainable parameters must be real floating point numbers, got {p.dtype} in {type(module).__name__}; "
                "keep real and imaginary parts (torch.view_as_real), and join them in forward"
            )
    return parameters


def flatten(module: nn.Module) -> Tensor:
    """Make the trainable parameters of `module` views of one flat vector, and return that vector.

    Writing to the vector changes the module and the other way round.

    Parameters
    ----------
    module : nn.Module
        Any module; parameters that are shared between its parts are taken once.

    Raises
    ------
    ValueError
        No trainable parameter, or several dtypes or devices.

    Examples
    --------
    >>> module = nn.Linear(2, 1)
    >>> x = flatten(module)
    >>> x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 2., 3.])
    >>> module(torch.tensor([1.0, 1.0])).item()
    6.0
    """
    return joined(trainable(module))


def joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Make `parameters` views of one flat vector, as `flatten` does with those of a module, and return that vector.

    Parameters
    ----------
    parameters : list of Parameter
        Of one dtype, on one device, each there once.

    Raises
    ------
    ValueError
        Several dtypes or devices, one parameter twice, or tensors of a kind that has no flat memory of its own.
    """
    for parameter in parameters:
        kind = type(parameter.data)
        if kind is not Tensor or parameter.layout != torch.strided:
            what = kind.__name__ if kind is not Tensor else f"one of layout {parameter.layout}"
            raise ValueError(
                f"parameters must be ordinary dense tensors, whole on every rank, got {what}; leave out fully_shard or "
                "quantisation (DistributedDataParallel works), or use an optimizer of torch.optim"
            )
    if len(set(map(id, parameters))) < len(parameters):
        raise ValueError("parameters must be there once each, got one several times; give it once")
    kinds = {(p.dtype, p.device) for p in parameters}
    if len(kinds) > 1:
        raise ValueError(f"parameters must be of one dtype and on one device, got {sorted(map(str, kinds))}; use .to()")
    x = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, view in zip(parameters, Layout(tuple(tuple(p.shape) for p in parameters)).views(x), strict=True):
        parameter.data = view
    return x


def relink(parameters: Sequence[nn.Parameter], views: Sequence[Tensor]) -> None:
    """Make `parameters` views of their flat vector again where their memory was exchanged; their values stay.

    Parameters
    ----------
    parameters : list of Parameter
        Those that were joined.
    views : list of Tensor
        Their places in the flat vector.

    Raises
    ------
    ValueError
        A parameter with another shape, dtype or device than its place.
    """
    for p, view in zip(parameters, views, strict=True):
        if p.data_ptr() == view.data_ptr() and p.shape == view.shape and p.stride() == view.stride():
            continue
        if (p.shape, p.dtype, p.device) != (view.shape, view.dtype, view.device):
            raise ValueError(
                f"parameters must stay {view.dtype} of shape {tuple(view.shape)} on {view.device} as they were when "
                f"they were made one vector, got {p.dtype} of shape {tuple(p.shape)} on {p.device}; make the optimizer "
                "or objective after .to()"
            )
        view.copy_(p.data.clone())  # the two may overlap: a transposed view of the same memory
        p.data = view
