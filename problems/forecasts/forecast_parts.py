"""Subdomains of forecasting problems: parts of the graph whose local models are composite graphs or own nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Bounds, Objective, Price, SharedDecomposition, corrected_models, innermost, product
from mldd.graph import aggregate, grow
from mldd.problems.nets import composite_labels, pieces, shares_of
from mldd.ranks import Communicator

if TYPE_CHECKING:
    from mldd.problems.forecasts.forecast_loss import ForecastLoss
    from mldd.problems.forecasts.forecasting import Forecasting


def decomposition(problem: Forecasting, parts: int, overlap: int, comm: Communicator) -> SharedDecomposition:
    """Return the decomposition into `parts` of the graph; every subdomain updates all parameters.

    Local models are first-order corrected: their gradient at the current iterate is that of the loss, over the same
    samples.

    Parameters
    ----------
    problem : Forecasting
        What is decomposed.
    parts, overlap : int
        Parts, and layers of nodes that are added to each.
    comm : Communicator
        The ranks that share the subdomains.

    Raises
    ------
    ValueError
        More parts than nodes, fewer than ranks, a negative overlap.
    """
    shares = problem.batches.shares
    for name, least, given in (("parts", -(-comm.ranks // shares), parts), ("overlap", 0, overlap)):
        if given < least:
            raise ValueError(f"`{name}` must be >= {least}, got {given}")
    least = problem.batches.batch or problem.local_graphs.samples
    if shares > least:
        raise ValueError(f"`shares` must be <= {least} (the samples of a step), got {shares}")
    layout, mine, part = problem.net.layout, comm.share(parts * shares), problem.parts(parts)

    @cache
    def losses(chosen: range) -> ForecastLoss:
        f: ForecastLoss = local_batch(problem, part, list(chosen), overlap)
        return f

    def cut(f: Objective) -> list[Tensor]:
        rows = _rows(f)
        return pieces(torch.arange(problem.local_graphs.samples) if rows is None else rows, shares)

    def of_share(f: Objective, j: int) -> Any:
        return OfRows(cut(f)[j], f.bounds)

    build = corrected_models(lambda decomposition, f: losses(decomposition.local).drawn(_rows(f)))
    weights = None if problem.spaces.local == "composite" else _shares(problem, part, parts, overlap)
    more: dict[str, Any] = {"blocks": layout.slices, "device": problem.kind["device"], "shares": weights}
    made = SharedDecomposition(layout.size, parts, build, None, comm.share(parts), **more)
    if shares > 1:
        made = product(made, shares, of_share, lambda f: shares_of(cut(f)), mine)
    losses(range(mine.start % parts, min(mine.start % parts + len(mine), parts)))  # bad parts are refused here
    return made


def _shares(problem: Forecasting, part: Tensor, parts: int, overlap: int) -> Callable[[Objective], Tensor]:
    """Return what gives the shares of the parts in the loss: of the weights of all nodes that they count."""
    layers = 0 if problem.spaces.local == "restricted" else overlap

    @cache
    def found() -> Tensor:
        of_node = torch.from_numpy(problem.weights[1].sum((1, 2)))
        sums = torch.stack([of_node[grow(problem.graph, part == k, layers)].sum() for k in range(parts)])
        return sums / sums.sum()

    return lambda f: found()


@dataclass(frozen=True)
class OfRows:
    """Stands for the loss over some samples, where local losses over these are made.

    Parameters
    ----------
    rows : Tensor, shape (b,), int64
        Numbers of the samples.
    bounds : Bounds
        Of the parameters.
    """

    rows: Tensor
    bounds: Bounds


def local_batch(problem: Forecasting, part: Tensor, chosen: Sequence[int], overlap: int = 0) -> Any:
    """Return the local losses of the `chosen` parts as one batched objective of (p, N), without correction.

    Parameters
    ----------
    problem : Forecasting
        Whose local losses are wanted.
    part : Tensor, shape (n,), int64
        The part of every node.
    chosen : sequence of int
        Numbers of the parts.
    overlap : int
        Layers of nodes that are added to every part.
    """
    layers = 0 if problem.spaces.local == "restricted" else overlap
    own = [grow(problem.graph, part == k, layers).numpy() for k in chosen]
    made = _composites(problem, part, own) if problem.spaces.local == "composite" else _halos(problem, own, overlap)
    batch = problem.local_graphs.stack(made, **problem.kind)
    return problem.loss(batch, Price(problem.share(batch), fine=False), stochastic=False)


def _composites(problem: Forecasting, part: Tensor, own: Sequence[Any]) -> list[Any]:
    within = max(problem.first_clusters, int(part.max()) + 1)
    clusters = aggregate(problem.graph, within, seed=problem.seed, within=part).numpy()
    return [problem.local_graphs.aggregated(composite_labels(nodes, clusters)) for nodes in own]


def _halos(problem: Forecasting, own: Sequence[Any], overlap: int) -> list[Any]:
    """Return the own nodes with what they depend on, or the overlap, and the mean loss over them, of weights one."""
    graphs, made = problem.local_graphs, []
    of_node = problem.weights[1].sum((1, 2))
    for nodes in own:
        outputs = np.flatnonzero(nodes)
        targets = graphs.targets / max(of_node[outputs].sum(), 1e-300)
        if problem.spaces.local == "restricted":
            around = grow(problem.graph, torch.from_numpy(nodes), overlap).numpy() & ~nodes
            made.append(graphs.restricted(outputs, np.flatnonzero(around), targets))
        else:
            made.append(graphs.piece(outputs, targets))
    return made


def _rows(f: Objective) -> Tensor | None:
    """Return the samples of the mini-batch that an objective, or what it is composed of, is the loss over."""
    rows: Tensor | None = getattr(innermost(f), "rows", None)
    return rows
