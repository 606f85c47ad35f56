"""What graphs have to have in common to be batched, and what each of them has to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_graphs(graphs: Sequence[Any]) -> None:
    """Refuse graphs that cannot be joined to batches, and what is no number in them.

    Labels may be NaN where they are unknown.

    Parameters
    ----------
    graphs : sequence of torch_geometric.data.Data
        All of them.

    Raises
    ------
    ValueError
        Different fields or shapes of rows, features that are not finite, or an edge to a node that is not there.
    """
    fields = sorted(graphs[0].keys())
    like = {name: _kind(name, graphs[0]) for name in fields}
    for k, graph in enumerate(graphs):
        if sorted(graph.keys()) != fields:
            raise ValueError(
                f"graphs must have the same fields, got {' '.join(fields)} in the first and "
                f"{' '.join(sorted(graph.keys()))} in number {k}"
            )
        for name in fields:
            _check_field(name, graph[name], like[name], graph, k)
        edges = graph.get("edge_index")
        if edges is not None and edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < graph.num_nodes:
            raise ValueError(
                f"`edge_index` must have nodes 0..{graph.num_nodes - 1} in graph {k}, got {int(edges.min())}.."
                f"{int(edges.max())}"
            )


def _check_field(name: str, value: Any, like: str, graph: Any, k: int) -> None:
    """Refuse a field of graph `k` that cannot be joined to that of the first one, or is not finite."""
    if _kind(name, graph) != like:
        raise ValueError(
            f"`{name}` must be of one kind in all graphs, got {like} in the first and {_kind(name, graph)} in number "
            f"{k}; make them alike"
        )
    if name != "y" and isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got another value in graph {k}; fill it in, or leave the graph out")


def _kind(name: str, graph: Any) -> str:
    """Return the kind of numbers of a field and its shape but for the axis along which graphs are joined."""
    value = graph[name]
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return ""
    axis = graph.__cat_dim__(name, value)
    shape = ["*" if axis is not None and k == axis % value.dim() else str(n) for k, n in enumerate(value.shape)]
    dtype = "float" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
    return f"{dtype} ({', '.join(shape)})"
