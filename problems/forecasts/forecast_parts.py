"""Subdomains of forecasting problems: parts of the graph whose local models are composite graphs or own nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mldd.algebra import Objective, Price, SharedDecomposition, corrected_models, innermost
from mldd.graph import aggregate, grow
from mldd.problems.nets import composite_labels
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
    for name, least, given in (("parts", comm.ranks, parts), ("overlap", 0, overlap)):
        if given < least:
            raise ValueError(f"`{name}` must be >= {least}, got {given}")
    layout, mine, part = problem.net.layout, comm.share(parts), problem.parts(parts)

    @cache
    def losses(chosen: range) -> ForecastLoss:
        f: ForecastLoss = local_batch(problem, part, list(chosen), overlap)
        return f

    build = corrected_models(lambda decomposition, f: losses(decomposition.local).drawn(_rows(f)))
    losses(mine)  # here, where bad parts are refused, and outside of any clock
    device = problem.kind["device"]
    return SharedDecomposition(layout.size, parts, build, None, mine, blocks=layout.slices, device=device)


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
    own = [grow(problem.graph, part == k, overlap).numpy() for k in chosen]
    pieces = _composites(problem, part, own) if problem.spaces.local == "composite" else _halos(problem, own)
    batch = problem.local_graphs.stack(pieces, **problem.kind)
    return problem.loss(batch, Price(problem.share(batch), fine=False), stochastic=False)


def _composites(problem: Forecasting, part: Tensor, own: Sequence[Any]) -> list[Any]:
    within = max(problem.first_clusters, int(part.max()) + 1)
    clusters = aggregate(problem.graph, within, seed=problem.seed, within=part).numpy()
    return [problem.local_graphs.aggregated(composite_labels(nodes, clusters)) for nodes in own]


def _halos(problem: Forecasting, own: Sequence[Any]) -> list[Any]:
    """Return the own nodes with an exact halo and the mean loss over them: their weights add up to one."""
    graphs, made = problem.local_graphs, []
    of_node = problem.weights[1].sum((1, 2))
    for nodes in own:
        outputs = np.flatnonzero(nodes)
        made.append(graphs.piece(outputs, graphs.targets / max(of_node[outputs].sum(), 1e-300)))
    return made


def _rows(f: Objective) -> Tensor | None:
    """Return the samples of the mini-batch that an objective, or what it is composed of, is the loss over."""
    rows: Tensor | None = getattr(innermost(f), "rows", None)
    return rows
