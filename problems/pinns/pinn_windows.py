"""Windows of a partition of unity as subdomains: their layout, and a decomposition of the parameters by windows."""

from __future__ import annotations

import torch
from torch import Tensor

from mldd.algebra import Decomposition, Objective, Price, contiguous
from mldd.problems.pinns.window_loss import LocalWindows
from mldd.problems.pinns.window_model import WindowModel
from mldd.ranks import Communicator


def parse_layout(windows: int | str, dim: int) -> tuple[int, ...]:
    """Return the number of windows along each of `dim` coordinates; those that are left out have one (slabs).

    Parameters
    ----------
    windows : int or str
        As in `Windows`.
    dim : int
        Number of coordinates, at most 5.

    Examples
    --------
    >>> parse_layout(4, 2), parse_layout("2x3", 2)
    ((4, 1), (2, 3))

    Raises
    ------
    ValueError
        No such numbers, or more of them than coordinates.
    """
    pieces = str(windows).split("x")
    if len(pieces) > dim or not all(piece.isdecimal() and int(piece) > 0 for piece in pieces):
        known = "a number >= 1" if dim == 1 else f"numbers >= 1 joined by 'x', at most {dim}, as in 4 or 2x3"
        raise ValueError(f"`windows` must be {known}, got {windows!r}")
    return (*map(int, pieces), *[1] * (dim - len(pieces)))


def by_windows(
    model: WindowModel, points: Tensor, price: Price, parts: int, overlap: int, comm: Communicator
) -> Decomposition:
    """Return the decomposition of the parameters into those of windows, or of runs of neighbouring windows.

    The local models are restrictions of the loss that evaluate the windows of a subdomain alone. With a network of the
    whole domain, it is the last one of the last run.

    Parameters
    ----------
    model : WindowModel
        The networks.
    points : Tensor, shape (m, d)
        All collocation points: ranks hold other subdomains, so each needs all of them.
    price : Price
        Of the loss over all points.
    parts : int
        At most the number of networks.
    overlap : int
        Networks that a run shares with either neighbour.
    comm : Communicator
        Its ranks divide the subdomains.

    Raises
    ------
    ValueError
        More parts than networks, fewer than ranks, or a negative overlap.
    """
    sizes = model.blocks
    if not 1 <= parts <= len(sizes):
        raise ValueError(f"`parts` must be in 1..{len(sizes)} (the networks), got {parts}")
    if parts < comm.ranks:
        raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")
    subdomains = contiguous(sizes, parts, overlap)
    ends = torch.tensor([0, *sizes]).cumsum(0)
    runs = [
        range(int(torch.searchsorted(ends, s.indices[0])), int(torch.searchsorted(ends, s.indices[-1] + 1)))
        for s in subdomains
    ]
    whole = model.loss(points, len(points), price, None)
    made: dict[range, LocalWindows] = {}

    def build(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        local = decomposition.local
        if local not in made:
            made[local] = model.locals(whole, points, runs, local)
        return made[local].at(x, decomposition)

    return Decomposition(sum(sizes), subdomains, build, comm.share(parts))
