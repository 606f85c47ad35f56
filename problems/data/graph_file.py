"""The fields of a graph by name, or many graphs, as networks of one's own take them."""

from __future__ import annotations

import os
from typing import Any

import torch

from mldd.problems.data.checksums import verify
from mldd.problems.data.contents import File
from mldd.problems.data.datasets import load_graph
from mldd.problems.data.formats import read_fields, read_graphs, user_path


def graph_fields(name: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the fields of a graph: those of a torch_geometric ``Data`` as they are, else those of `load_graph`.

    Parameters
    ----------
    name : str or path
        A file, or the name of a data set.
    data : path, optional
        Folder of the data sets.

    Returns
    -------
    dict
        ``x``, ``edge_index``, ``y``, ``train_mask``, ``val_mask``, ``test_mask``, and what else there is.

    Raises
    ------
    DataError
        No such graph, or several.
    """
    file = _of_torch(name)
    if file is not None:
        return read_fields(file)
    read = load_graph(name, data=data)
    features = read.features if read.features.layout == torch.strided else read.features.to_dense()
    made = {"x": features, "edge_index": read.graph.edge_index, "y": read.labels}
    made |= {"train_mask": read.train, "val_mask": read.validation, "test_mask": read.test}
    more = {"edge_weight": read.graph.weights, "edge_attr": read.graph.edge_attributes}
    return made | {key: value for key, value in more.items() if value is not None}


def many_graphs(name: str | os.PathLike[str]) -> Any:
    """Return the graphs of a file that has several, as a list or as lists by name; None for a single one.

    Parameters
    ----------
    name : str or path
        A file, or the name of a data set.

    Raises
    ------
    DataError
        A file that cannot be read.
    """
    file = _of_torch(name)
    return None if file is None else read_graphs(file)


def _of_torch(name: str | os.PathLike[str]) -> File | None:
    """Return the file of torch that a name stands for, None where it is another."""
    path = user_path(name)
    if path.suffix.lower() not in (".pt", ".pth") or not path.is_file():
        return None
    verify(path)
    return File(path)
