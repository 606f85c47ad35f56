"""What a trained network reads of a graph: edges and features. Labels and masks are neither needed nor looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.graph import Graph
from mldd.problems.data.contents import DataError, notes_of_edges, unused_note
from mldd.problems.data.datasets import NAMES, GraphData, load_graph
from mldd.problems.data.features import from_tensor, normalised_rows
from mldd.problems.data.formats import is_file_name, read_graph


@dataclass(frozen=True, eq=False)
class GraphInputs:
    """A graph with features.

    Parameters
    ----------
    name : str
        Of the set or the file.
    graph : Graph
        With n nodes.
    features : array or csr_matrix, shape (n, F)
        One row per node.
    notes : tuple of str
        What was done to the data, and what of them is not used, a sentence each.
    """

    name: str
    graph: Graph
    features: Any
    notes: tuple[str, ...] = ()


def inputs_of(
    data: Any, *, folder: str | os.PathLike[str] | None = None, reader: str = "", row_normalise: bool = False
) -> GraphInputs:
    """Return graph and features of data in any form.

    Parameters
    ----------
    data : str, path, GraphData, or object or mapping with ``x`` and ``edge_index``
        A known set, a file, or data in memory, as torch_geometric's `Data` has them.
    folder : path, optional
        Of the known sets.
    reader : str
        Of a file, as `load_graph` takes it.
    row_normalise : bool
        Divide the rows of non-negative features by their sums, as was done with the features of the training.

    Raises
    ------
    DataError
        There is no graph with features.
    """
    if isinstance(data, GraphData):
        return GraphInputs(data.name, data.graph, from_tensor(data.features), data.notes)
    if isinstance(data, str | os.PathLike):
        key = os.fspath(data)
        if key in NAMES and not reader:
            known = load_graph(key, data=folder)
            return GraphInputs(key, known.graph, from_tensor(known.features), known.notes)
        if not reader and not is_file_name(key):
            raise DataError(f"data set must be one of {', '.join(NAMES)}, or a file .npz or .pt, got {key!r}")
        made = _of_file(key, reader)
    else:
        made = _of_memory(data)
    if not row_normalise:
        return made
    notes = (*made.notes, "rows of the features were divided by their sums, as in the training")
    return GraphInputs(made.name, made.graph, normalised_rows(made.features), notes)


def _of_file(key: str, reader: str) -> GraphInputs:
    raw = read_graph(key, reader)
    of_edges = (None if a is None else torch.from_numpy(a) for a in (raw.edge_weights, raw.edge_attributes))
    edges = torch.from_numpy(np.ascontiguousarray(raw.edge_index))
    graph = Graph.from_edges(edges, int(raw.features.shape[0]), *of_edges)
    return GraphInputs(key, graph, raw.features, (*raw.notes, *notes_of_edges(raw), *unused_note(raw.unused)))


def _of_memory(data: Any) -> GraphInputs:
    """Return what tensors by name say."""
    given = {key: _entry(data, key) for key in ("x", "edge_index", "edge_weight", "edge_attr")}
    for key in ("x", "edge_index"):
        if not isinstance(given[key], Tensor):
            raise DataError(f"data must be a name, a file, or have tensors x and edge_index, got no {key}; add it")
    x = given["x"].detach().cpu().double()
    if x.dim() != 2 or not bool(torch.isfinite(x).all()):
        raise DataError(f"x must be finite and of shape (n, F), got shape {tuple(x.shape)}; mend it")
    weights, attributes = given["edge_weight"], given["edge_attr"]
    attributes = None if attributes is None else attributes.reshape(len(attributes), -1)
    return GraphInputs("data", Graph.from_edges(given["edge_index"], len(x), weights, attributes), x.numpy())


def _entry(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, Mapping) else getattr(data, key, None)
