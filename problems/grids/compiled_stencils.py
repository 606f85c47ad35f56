"""Stencils and transfers as one compiled function each, where there is a C compiler.

`stencils.c` (see `mldd.compiled`) is checked against the operations in torch when it is loaded, which are used without
it; both give the same numbers up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldd.algebra import Price, uncounted
from mldd.compiled import TOLERANCE, library_of

if TYPE_CHECKING:
    from mldd.problems.grids.grid import Grid
    from mldd.problems.grids.stencils import EdgeWeights

Goal = tuple[Tensor | None, Tensor | None]
NO_GOAL: Goal = (None, None)
_SOURCE = Path(__file__).with_name("stencils.c")
_in_torch: ContextVar[bool] = ContextVar("mldd_in_torch", default=False)  # operations in torch are asked for
_SMALL = 2**17  # numbers up to which one pass on one thread is faster than several passes on many threads


def suited(*vectors: Tensor | None) -> Any:
    """Return the compiled functions that take these vectors, or None.

    Parameters
    ----------
    *vectors : Tensor or None
        Arguments, the first of which is none of those that may be missing.
    """
    first = vectors[0]
    assert first is not None
    dtype = first.dtype
    for v in vectors:
        if v is not None and (v.dtype != dtype or not v.is_cpu or v.requires_grad or not v.is_contiguous()):
            return None
    if _in_torch.get() or not first.numel():
        return None
    if first.numel() > _SMALL and torch.get_num_threads() > 4:
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    return library(dtype)


def five_points(
    functions: Any,
    values: Tensor,
    shape: Sequence[int],
    load: Tensor | None = None,
    scale: float = 1.0,
    bend: Tensor | None = None,
    edges: EdgeWeights | None = None,
    goal: Goal = NO_GOAL,
) -> Tensor:
    """Return ``load + (scale A + diag bend) values``, see `mldd.problems.grids.stencils.stencil`.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    values : Tensor
        Values at the nodes of a grid or of a batch of grids.
    shape : sequence of int
        (columns,) or (rows, columns).
    load : Tensor, shape () or a batch or member of `values`, optional
        Linear term.
    scale : float
        Factor of A, where edges have no weights.
    bend : Tensor, a batch or member of `values`, optional
        Addition to the diagonal.
    edges : EdgeWeights, optional
        Weights of the edges.
    goal : tuple of two Tensors, shape of values
        A right-hand side b and factors w: instead of the product, ``w (b - product)`` is returned; no load then.
    """
    out, total, constant = torch.empty_like(values), values.numel(), 0.0
    extents, operator = _operator(values, shape, scale, bend, edges)
    if load is not None and load.dim() == 0:
        constant, load = float(load), None
    linear = constant, *_field(load, total // extents[0], total)
    functions.five_points(*extents, *linear, *operator, *_goal(goal, total), values.data_ptr(), out.data_ptr())
    return out


def relaxed_five_points(
    functions: Any,
    v: Tensor,
    shape: Sequence[int],
    scale: float,
    bend: Tensor | None,
    edges: EdgeWeights | None,
    b: Tensor,
    steps: Sequence[Tensor],
) -> Tensor:
    """Return what the steps ``v <- v + w (b - (scale A + diag bend) v)`` make of v, which may be written to.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    v : Tensor
        Values at the nodes of a grid or of a batch of grids.
    shape : sequence of int
        (columns,) or (rows, columns).
    scale : float
        Factor of A, where edges have no weights.
    bend : Tensor, a batch or member of `v`, optional
        Addition to the diagonal.
    edges : EdgeWeights, optional
        Weights of the edges.
    b : Tensor, shape of v
        Right-hand side.
    steps : sequence of Tensor, shape of v
        The factors w, one after the other.
    """
    extents, operator = _operator(v, shape, scale, bend, edges)
    return _relaxed(functions.relax_five_points, (*extents, *operator), v, b, steps)


def _relaxed(function: Any, arguments: Sequence[Any], v: Tensor, b: Tensor, steps: Sequence[Tensor]) -> Tensor:
    """Return what a function that goes to and fro between two vectors has left in one of them."""
    total, other = v.numel(), torch.empty_like(v)
    for given in (b, *steps):
        _check_numbers(given.numel(), total)
    factors = (ctypes.c_void_p * len(steps))(*(w.data_ptr() for w in steps))
    function(*arguments, b.data_ptr(), len(steps), factors, v.data_ptr(), other.data_ptr())
    return v if len(steps) % 2 == 0 else other


def _operator(
    values: Tensor, shape: Sequence[int], scale: float, bend: Tensor | None, edges: EdgeWeights | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return members, rows, columns, scale and diagonal of a five-point matrix, and the fields of its entries."""
    dim, columns = len(shape), shape[-1]
    rows = shape[0] if dim == 2 else 1
    size, total = rows * columns, values.numel()
    if values.shape[-1] != size:
        _check_numbers(values.shape[-dim:].numel(), size)
    weights: tuple[Any, ...] = (None, None, None, False)
    if edges is not None:
        weights = (edges.across.data_ptr(), edges.down.data_ptr(), *_field(edges.diagonal, size, total))
    return (total // size, rows, columns, scale, 2 * dim * scale), (*_field(bend, size, total), *weights)


def _check_numbers(got: int, *expected: int) -> None:
    """Refuse a tensor that is too short or too long: compiled functions would read what lies behind it."""
    if got not in expected:
        raise ValueError(f"expected {' or '.join(map(str, expected))} numbers, got {got}; give the values at all nodes")


def _goal(goal: Goal, total: int) -> Iterator[int | None]:
    for values in goal:
        if values is not None:
            _check_numbers(values.numel(), total)
        yield None if values is None else values.data_ptr()


def _field(values: Tensor | None, size: int, total: int) -> tuple[int | None, bool]:
    """Return where a field is, and whether every member of a batch has its own."""
    if values is None:
        return None, False
    _check_numbers(values.numel(), size, total)
    return values.data_ptr(), values.numel() > size


def linked_points(
    functions: Any, diagonal: Tensor, links: Sequence[tuple[int, Tensor]], v: Tensor, goal: Goal = NO_GOAL
) -> Tensor:
    """Return ``H v`` for the Hessian of an area, see `mldd.problems.grids.surface.SurfaceHessian`.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    diagonal : Tensor, shape (n,) or (p, n)
        Of the Hessian.
    links : sequence of (int, Tensor)
        Distance and weights of the edges, in three directions.
    v : Tensor, shape (..., n)
        The direction, or several ones of a point of shape (n,).
    goal : tuple of two Tensors, shape of v
        As for `five_points`.
    """
    out = torch.empty_like(v)
    functions.linked_points(*_links(diagonal, links, v), *_goal(goal, v.numel()), v.data_ptr(), out.data_ptr())
    return out


def relaxed_linked_points(
    functions: Any, diagonal: Tensor, links: Sequence[tuple[int, Tensor]], v: Tensor, b: Tensor, steps: Sequence[Tensor]
) -> Tensor:
    """Return what the steps ``v <- v + w (b - H v)`` make of v, which may be written to, for the Hessian of an area.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    diagonal : Tensor, shape (n,) or (p, n)
        Of the Hessian.
    links : sequence of (int, Tensor)
        Distance and weights of the edges, in three directions.
    v : Tensor, shape (..., n)
        Where the steps begin.
    b : Tensor, shape of v
        Right-hand side.
    steps : sequence of Tensor, shape of v
        The factors w, one after the other.
    """
    return _relaxed(functions.relax_linked_points, _links(diagonal, links, v), v, b, steps)


def _links(diagonal: Tensor, links: Sequence[tuple[int, Tensor]], v: Tensor) -> tuple[Any, ...]:
    """Return members, nodes and the entries of the Hessian of an area."""
    n, total = v.shape[-1], v.numel()
    _check_numbers(n, diagonal.shape[-1])
    where, is_own = _field(diagonal, n, total)
    steps, weights = zip(*links, strict=True)
    return total // n, n, is_own, *steps, where, *(w.data_ptr() for w in weights)


def surface_gradient(functions: Any, x: Tensor, frame: Tensor, h: float, value: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient of an area, and the area, which is empty where it is not asked for.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    x : Tensor, shape (n,) or (p, n)
        The point.
    frame : Tensor, shape (rows + 2, columns + 2) or (p, rows + 2, columns + 2)
        Values on the ring.
    h : float
        Mesh width.
    value : bool
        Whether the area is computed.
    """
    members, rows, columns = _windows(x, frame)
    out, scratch = torch.empty_like(x), x.new_empty(8 * (columns + 2))
    sums = x.new_empty(x.shape[:-1] if value else 0)
    functions.surface_gradient(
        members, rows, columns, frame.dim() > 2, h, frame.data_ptr(), x.data_ptr(), scratch.data_ptr(), out.data_ptr(),
        sums.data_ptr() if value else None,
    )  # fmt: skip
    return out, sums.mul_(0.25 * h * h)


def surface_links(functions: Any, x: Tensor, frame: Tensor, h: float) -> tuple[Tensor, list[Tensor]]:
    """Return the diagonal of the Hessian of an area, and the weights of edges along rows, along columns and cells.

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    x : Tensor, shape (n,) or (p, n)
        The point.
    frame : Tensor, shape (rows + 2, columns + 2) or (p, rows + 2, columns + 2)
        Values on the ring.
    h : float
        Mesh width.
    """
    members, rows, columns = _windows(x, frame)
    diagonal, scratch = torch.empty_like(x), x.new_empty(10 * (columns + 2))
    links = [x.new_empty(*x.shape[:-1], x.shape[-1] - step) for step in (1, columns, columns - 1)]
    pointers = (t.data_ptr() for t in (frame, x, scratch, diagonal, *links))
    functions.surface_links(members, rows, columns, frame.dim() > 2, h, *pointers)
    return diagonal, links


def _windows(x: Tensor, frame: Tensor) -> tuple[int, int, int]:
    """Return the number of members of a batch, and their rows and columns."""
    rows, columns = (k - 2 for k in frame.shape[-2:])
    members = x.numel() // x.shape[-1]
    _check_numbers(x.shape[-1], rows * columns)
    _check_numbers(frame.shape[:-2].numel(), 1, members)
    return members, rows, columns


def prolong(functions: Any, e: Tensor, fine: Grid, coarse: Grid) -> Tensor:
    """Return the interpolant on the fine grid, shape (n,).

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    e : Tensor, shape (m,)
        Values on the coarse grid.
    fine, coarse : Grid
        Both grids.
    """
    return _moved(functions.prolong, e, coarse, fine, _extents(fine, coarse))


def restrict(functions: Any, g: Tensor, fine: Grid, coarse: Grid) -> Tensor:
    """Return the transpose of the interpolation applied to `g`, shape (m,).

    Parameters
    ----------
    functions : object
        What `suited` has returned.
    g : Tensor, shape (n,)
        Values on the fine grid.
    fine, coarse : Grid
        Both grids.
    """
    return _moved(functions.restrict_to, g, fine, coarse, _extents(fine, coarse))


def _moved(function: Any, v: Tensor, source: Grid, target: Grid, extents: tuple[int, ...]) -> Tensor:
    """Return what a transfer makes of a vector on the grid `source` on the grid `target`."""
    _check_numbers(v.numel(), source.size)
    out, scratch = v.new_empty(target.size), v.new_empty(source.shape[-1])
    function(*extents, v.data_ptr(), scratch.data_ptr(), out.data_ptr())
    return out


def _extents(fine: Grid, coarse: Grid) -> tuple[int, ...]:
    """Return rows and columns of both grids, and where the first coarse node is in each direction of the fine one."""
    if fine.dim == 1:
        return 1, fine.shape[0], 1, coarse.shape[0], 0, not fine.natural[0]
    return *fine.shape, *coarse.shape, not fine.natural[0], not fine.natural[2]


@cache
def library(dtype: torch.dtype) -> Any:
    """Return the compiled functions in this precision; None where they cannot be made.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    """
    long, pointer = ctypes.c_long, ctypes.c_void_p
    real = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    transfer, ends = [long] * 6 + [pointer] * 3, [long, pointer, long, *[pointer] * 3]
    arguments: dict[str, Sequence[Any]] = {
        "five_points": [long] * 3 + [real] * 3 + [pointer, long] * 2 + [pointer] * 3 + [long] + [pointer] * 4,
        "relax_five_points": [long] * 3 + [real] * 2 + [pointer, long] + [pointer] * 3 + ends,
        "linked_points": [long] * 6 + [pointer] * 8,
        "relax_linked_points": [long] * 6 + [pointer] * 4 + ends[1:],
        "surface_gradient": [long] * 4 + [real] + [pointer] * 5,
        "surface_links": [long] * 4 + [real] + [pointer] * 7,
        "prolong": transfer,
        "restrict_to": transfer,
    }
    return library_of(_SOURCE, dtype, arguments, lambda functions: _is_right(functions, dtype))


def _is_right(functions: Any, dtype: torch.dtype) -> bool:
    """Compare with operations in torch."""
    with uncounted():  # the first evaluation of a run may be what loads the library
        found = _examples(functions, dtype)
        token = _in_torch.set(True)
        try:
            expected = _examples(None, dtype)
        finally:
            _in_torch.reset(token)
    pairs = zip(found, expected, strict=True)
    return all(bool((a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()) for a, b in pairs)


def _examples(functions: Any, dtype: torch.dtype) -> list[Tensor]:
    """Return results on small grids and a surface, by operations in torch without `functions`."""
    from mldd.problems.grids.grid import Grid, GridTransfer
    from mldd.problems.grids.pde import Membrane, MinimalSurface
    from mldd.problems.grids.stencils import stencil

    name = str(dtype).removeprefix("torch.")
    membrane, surface = Membrane(n=19, dtype=name), MinimalSurface(n=19, dtype=name)
    f, area = membrane.energy(membrane.grid(), Price()), surface.energy(surface.grid(), Price())
    x, y = (torch.arange(3.0 * g.size, dtype=dtype).cos_().view(3, -1) for g in (f, area))
    square, line = y.view(3, 19, 19), y[0, :19].contiguous()
    steps, others = ([0.1 * v, 0.2 * v, 0.1 * v] for v in (x, y))
    if functions is None:
        found = [f._apply(x, f.load, x), stencil(square, 2, square[0], bend=square), stencil(line, 1, scale=0.5)]
        found += [*area.value_and_gradient(y), area.hessian_diagonal(y), area.hessian(y).product(y)]
        found += [f.hessian(x).relaxed(x.clone(), x, steps), area.hessian(y).relaxed(y.clone(), y, others)]
    else:
        found = [five_points(functions, x, f.shape, f.load, bend=x, edges=f.edges)]
        found.append(five_points(functions, square, (19, 19), square[0], bend=square))
        found.append(five_points(functions, line, (19,), scale=0.5))
        found += reversed(surface_gradient(functions, y, area.frame, area.h, True))
        diagonal, links = surface_links(functions, y, area.frame, area.h)
        pairs = list(zip((1, 19, 18), links, strict=True))
        found += [diagonal, linked_points(functions, diagonal, pairs, y)]
        found.append(relaxed_five_points(functions, x.clone(), f.shape, f.scale, f.hessian(x).bend, f.edges, x, steps))
        found.append(relaxed_linked_points(functions, diagonal, pairs, y.clone(), y, others))
    for grid, v in ((membrane.grid(), x[0]), (Grid(19), y[0]), (Grid(19, 1), line)):
        transfer = GridTransfer(grid)
        coarse = transfer.restrict(v) if functions is None else restrict(functions, v, grid, transfer.coarse)
        fine = transfer.prolong(coarse) if functions is None else prolong(functions, coarse, grid, transfer.coarse)
        found += [coarse, fine]
    return found
