"""The sweeps of plain tanh networks as one compiled function each, where there is a C compiler.

`taylor.c` (see `mldd.compiled`) is checked against the sweeps in torch when it is loaded, which are used without it;
both give the same numbers up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldd.compiled import TOLERANCE, library_of

if TYPE_CHECKING:
    from mldd.problems.pinns.taylor import Streams

_SOURCE = Path(__file__).with_name("taylor.c")
_MOST = 128  # points of a block: its streams stay in the cache next to the processor
_STEP = 16  # a block has a multiple of these, so that it consists of full vectors
_SMALL = 2**22  # multiplications up to which one thread is faster than several that torch may use


class _Shape(ctypes.Structure):
    """What `taylor.c` calls Shape."""

    _fields_ = [
        *(
            (name, ctypes.c_long)
            for name in ("networks", "layers", "points", "block", "slopes", "bends", "point_stride")
        ),
        *((name, ctypes.POINTER(ctypes.c_long)) for name in ("widths", "coordinates")),
    ]


def suited(source: Streams, parameters: Sequence[Tensor]) -> Any:
    """Return the compiled functions that take these points and parameters, or None.

    Parameters
    ----------
    source : Streams
        The points and derivatives that are asked for.
    parameters : sequence of Tensor
        Views of the layout, with or without a leading axis.
    """
    net, points, first = source.net, source.points, parameters[0]
    if net.kind != "dense" or first.device.type != "cpu" or points.device.type != "cpu" or not points.numel():
        return None
    if first.dtype != points.dtype:
        return None
    networks = len(first) if first.dim() == 3 else 1
    if torch.get_num_threads() > 1:
        weights = sum(i * o for i, o in zip(net.widths, net.widths[1:], strict=False))
        if networks * source.count * points.shape[-2] * weights > _SMALL:
            return None
    return library(first.dtype) if networks else None


class CompiledEvaluation:
    """One evaluation of p networks by the compiled sweeps, with the buffers that the sweep back reads.

    Parameters
    ----------
    key : tuple
        What evaluations that can share buffers have in common.
    source : Streams
        The points and derivatives that are asked for.
    batch : int
        Number p of networks; 0 where the parameters have no leading axis.
    functions : object
        What `library` returns.

    Attributes
    ----------
    streams : Tensor, shape (..., S, m, outputs)
        The result; it is written to again after `release`.
    """

    def __init__(self, key: Any, source: Streams, batch: int, functions: Any) -> None:
        net, like, m = source.net, source.points, source.points.shape[-2]
        self.key, self.net, self.batch = key, net, batch
        self.block = block_of(m)
        p, d, blocks = max(1, batch), net.widths[0], -(-m // self.block)
        self._widths = (ctypes.c_long * len(net.widths))(*net.widths)
        self._slopes = (ctypes.c_long * max(1, len(source.slopes)))(*source.slopes)
        stride = blocks * d * self.block if source.points.dim() == 3 else 0
        counts = p, net.layers, m, self.block, len(source.slopes), len(source.bends), stride
        self.shape = _Shape(*counts, self._widths, self._slopes)
        row = source.count * self.block
        self.states = like.new_empty(p * blocks * sum(net.widths[1:-1]) * row)
        self.scratch = like.new_empty(2 * max(net.widths[1:]) * row)
        whole = like.new_empty((p, source.count, m, net.widths[-1]))
        self.streams = whole if batch else whole[0]
        self.seeds = torch.empty_like(self.streams)
        self.library = functions
        self._buffers = self.states.data_ptr(), self.scratch.data_ptr()
        self._given: _Arrays | None = None
        self._wanted: _Arrays | None = None

    def run(self, source: Streams, parameters: Sequence[Tensor]) -> None:
        """Propagate all streams through all layers.

        Parameters
        ----------
        source : Streams
            The points and derivatives that are asked for.
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        """
        if self._given is None or self._given.tensors is not parameters:
            self._given = _Arrays(parameters, self.batch)
        self.points = source.blocks
        given, (states, scratch) = self._given, self._buffers
        self.library.forward(
            self.shape, given.pointers, given.strides, self.points.data_ptr(), states, scratch, self.streams.data_ptr()
        )

    def backward(self, g: Tensor, out: Sequence[Tensor]) -> None:
        """Write the gradient with respect to the parameters to `out`, shaped as they are, and release the buffers.

        Parameters
        ----------
        g : Tensor, shape (..., S, m, outputs)
            The gradient with respect to `streams`.
        out : sequence of Tensor
            Gets the gradient, shaped as the parameters.
        """
        if self._wanted is None or self._wanted.tensors is not out:
            self._wanted = _Arrays(out, self.batch)
        g = g.contiguous()
        given, wanted, (states, scratch) = self._given, self._wanted, self._buffers
        assert given is not None
        self.library.backward(
            self.shape,
            given.pointers,
            given.strides,
            self.points.data_ptr(),
            states,
            scratch,
            g.data_ptr(),
            wanted.pointers,
            wanted.strides,
        )
        wanted.finish()
        self.release()

    def add_fields(self, coefficients: Tensor, places: Tensor, fields: Tensor) -> None:
        """Add to fields what the networks give there.

        Parameters
        ----------
        coefficients : Tensor, shape (p, R, S, m)
            Derivatives of R fields with respect to the streams.
        places : Tensor, shape (p R m,), int64
            Where the fields of a network lie in all fields.
        fields : Tensor
            All fields.
        """
        pointers = (t.data_ptr() for t in (coefficients, places, self.streams, fields.view(-1)))
        self.library.add_fields(self.shape, coefficients.shape[1], *pointers)

    def pulled(self, coefficients: Tensor, places: Tensor, g: Tensor) -> Tensor:
        """Return the gradient with respect to the streams, in a buffer, from that with respect to fields.

        Parameters
        ----------
        coefficients : Tensor, shape (p, R, S, m)
            As for `add_fields`.
        places : Tensor, shape (p R m,), int64
            As for `add_fields`.
        g : Tensor
            Gradient with respect to all fields.
        """
        pointers = (t.data_ptr() for t in (coefficients, places, g.view(-1), self.seeds))
        self.library.pull_fields(self.shape, coefficients.shape[1], *pointers)
        return self.seeds

    def release(self) -> None:
        """Leave the buffers to the next evaluation of this kind."""
        self.net._spare.setdefault(self.key, []).append(self)


class _Arrays:
    """Where tensors lie, for C; rebuilt for lists, kept for tuples, which still have the tensors they had."""

    def __init__(self, tensors: Sequence[Tensor], batch: int) -> None:
        self.tensors = tensors if isinstance(tensors, tuple) else None
        held, self.copied = [], []
        for t in tensors:
            if (t[0] if batch else t).is_contiguous():
                held.append(t)
            else:
                held.append(t.contiguous())
                self.copied.append((t, held[-1]))
        self.held = held
        self.pointers = (ctypes.c_void_p * len(held))(*(t.data_ptr() for t in held))
        self.strides = (ctypes.c_long * len(held))(*(t.stride(0) if batch else 0 for t in held))
        if self.copied:
            self.tensors = None

    def finish(self) -> None:
        """Copy to what C could not write to."""
        for target, source in self.copied:
            target.copy_(source)


def block_of(points: int) -> int:
    """Return how many points a block has.

    Parameters
    ----------
    points : int
        Number of all points.
    """
    blocks = -(-points // _MOST)
    return -(-points // (blocks * _STEP)) * _STEP


def blocks_of(points: Tensor) -> Tensor:
    """Return points as the compiled sweeps read them, shape (1 or p, blocks, d, block), zeros behind the last ones.

    Parameters
    ----------
    points : Tensor, shape (m, d) or (p, m, d)
        One point in a row.
    """
    given = points if points.dim() == 3 else points[None]
    p, m, d = given.shape
    block = block_of(m)
    blocks = -(-m // block)
    padded = given.new_zeros((p, blocks * block, d))
    padded[:, :m] = given
    return padded.view(p, blocks, block, d).transpose(2, 3).contiguous()


# ------------------------------------------------------------------------------------------------ compiling


@cache
def library(dtype: torch.dtype) -> Any:
    """Return the compiled functions in this precision; None where they cannot be made.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    """
    pointer, pointers, longs = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_long)
    shape = ctypes.POINTER(_Shape)
    fields = [shape, ctypes.c_long, *[pointer] * 4]
    arguments = {
        "forward": [shape, pointers, longs, *[pointer] * 4],
        "backward": [shape, pointers, longs, *[pointer] * 4, pointers, longs],
        "add_fields": fields,
        "pull_fields": fields,
    }
    return library_of(_SOURCE, dtype, arguments, lambda functions: _is_right(functions, dtype))


def _is_right(functions: Any, dtype: torch.dtype) -> bool:
    """Compare with the sweeps in torch on a small network."""
    from mldd.problems.pinns.taylor import TaylorNetwork

    net = TaylorNetwork((2, 9, 7, 2))
    x = torch.stack([net.initial(0), net.initial(1)]).to(dtype)
    source = net.at(torch.linspace(-1, 1, 300, dtype=dtype).view(150, 2), (2, 1))
    found = []
    for evaluation in (source.layered(net.layout.views(x)), CompiledEvaluation((), source, 2, functions)):
        if isinstance(evaluation, CompiledEvaluation):
            evaluation.run(source, net.layout.views(x))
        g = torch.empty_like(x)
        streams = evaluation.streams.clone()
        evaluation.backward(streams.tanh(), net.layout.views(g))
        found.append(torch.cat([streams.reshape(-1), g.view(-1)]))
    return bool((found[0] - found[1]).abs().max() <= TOLERANCE[dtype] * found[0].abs().max())
