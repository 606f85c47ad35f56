"""Files of torch: a torch_geometric `Data`, what its datasets keep as `processed/data.pt`, or a dict of tensors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import way_to_install
from mldd.loop import UntrustedError, check_torch_file, unreadable
from mldd.problems.data import SPLITS, DataError, File, GraphArrays
from mldd.problems.data.formats.checks import (
    checked_edges,
    checked_features,
    checked_labels,
    checked_masks,
    csr,
    of_edges,
)

Array = NDArray[Any]
_NEEDED = ("x", "edge_index")
_LABELS = "y"  # not needed where a trained network predicts them
_OF_EDGES = ("edge_weight", "edge_attr")
_MASKS = ("train_mask", "val_mask", "test_mask")
_SIZES = ("num_nodes", "_num_nodes")  # say nothing that the features do not say


def read_fields(file: File) -> dict[str, Any]:
    """Return the fields of the only graph in a `.pt`, whatever they are.

    Parameters
    ----------
    file : File
        The file.

    Raises
    ------
    DataError
        Several graphs, or none.
    """
    found = _one_graph(_loaded(file.content(), file.name), file.name)
    return {str(key): value for key, value in found.items() if value is not None}


def read_graphs(file: File) -> Any:
    """Return the graphs in a `.pt` that has several, None where it has one.

    Parameters
    ----------
    file : File
        A list of torch_geometric's Data or of dicts, lists of them by name (train, validation, test), or ``(data,
        slices)`` as data sets of torch_geometric write it.

    Returns
    -------
    list or dict of list or None
        The graphs, with the names where the file has them.

    Raises
    ------
    DataError
        Nothing that can be read.
    """
    loaded = _loaded(file.content(), file.name)
    if isinstance(loaded, Mapping) and "train" in loaded and set(loaded) <= set(SPLITS):
        return {name: list(graphs) for name, graphs in loaded.items()}
    if isinstance(loaded, list):
        return loaded if len(loaded) > 1 else None
    slices = loaded[1] if isinstance(loaded, tuple) and 2 <= len(loaded) <= 4 else None
    if not isinstance(slices, Mapping) or _count(slices) == 1:
        return None
    from torch_geometric.data import Data
    from torch_geometric.data.separate import separate

    joined = loaded[0] if hasattr(loaded[0], "to_dict") else Data.from_dict(dict(loaded[0]))
    return [separate(Data, joined, k, slices, decrement=False) for k in range(_count(slices))]


def _count(slices: Mapping[Any, Any]) -> int:
    """Return how many graphs the ends of their fields say there are."""
    return max((len(ends) - 1 for ends in slices.values() if hasattr(ends, "__len__")), default=1)


def read(file: File) -> GraphArrays:
    """Return the graph in a `.pt`: tensors x, edge_index, y, optional train/val/test_mask, edge_weight, edge_attr.

    Parameters
    ----------
    file : File
        The file; ``(data, slices)`` and ``[data]``, as datasets of torch_geometric write them, are read if they hold
        one graph.

    Raises
    ------
    DataError
        If the file holds anything else, or is a torch_geometric file and torch_geometric is missing.
    """
    where, content = file.name, file.content()
    fields = _one_graph(_loaded(content, where), where)
    found = {key: value for key, value in fields.items() if isinstance(value, Tensor)}
    missing = [key for key in _NEEDED if key not in found]
    if missing:
        raise DataError(f"{where}: expected tensors x and edge_index, got no {', '.join(missing)}; add them")
    features = _features(found["x"], where)
    nodes = int(features.shape[0])
    arrays = {
        key: _array(found[key], key, where) for key in ("edge_index", _LABELS, *_OF_EDGES, *_MASKS) if key in found
    }
    unused = tuple(
        str(key)
        for key, value in fields.items()
        if key not in (*_NEEDED, _LABELS, *_OF_EDGES, *_MASKS, *_SIZES) and value is not None and not _is_empty(value)
    )
    edges = checked_edges(arrays["edge_index"], nodes, where)
    on_edges = {key: arrays[key] for key in _OF_EDGES if key in arrays}
    weights, attributes = of_edges(on_edges, edges.shape[1], where)
    return GraphArrays(
        edges,
        features,
        checked_labels(arrays.get(_LABELS), nodes, where),
        checked_masks(arrays, nodes, where, columns=True),
        unused,
        edge_weights=weights,
        edge_attributes=attributes,
    )


def _is_empty(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, Tensor) and len(value) == 0


def _loaded(content: bytes, where: str) -> Any:
    """Load a `.pt` file without executing anything in it."""
    try:
        if b"HeteroData" in content:
            raise DataError(
                f"{where}: expected one kind of nodes and edges, got a HeteroData; save data.to_homogeneous()"
            )
        check_torch_file(content, where)
        names = _geometric_names() if b"torch_geometric" in content else []
        checked: Any = torch.sparse.check_sparse_tensor_invariants
        with torch.serialization.safe_globals(names), checked(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except DataError:
        raise
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except ModuleNotFoundError:
        reason, way = (
            "a torch_geometric file",
            f"{way_to_install('torch_geometric')}, or save a plain dict of the tensors",
        )
    except Exception as error:  # a hostile or damaged file can raise anything
        reason, way = unreadable(error), "save a torch_geometric Data or a dict of tensors"
    raise DataError(f"{where}: expected a .pt of plain tensors, got {len(content)} bytes ({reason}); {way}")


def _one_graph(loaded: Any, where: str) -> Mapping[Any, Any]:
    """Return the fields of the only graph in what a file holds."""
    graphs = 1
    if isinstance(loaded, tuple) and 2 <= len(loaded) <= 4:
        loaded, slices = loaded[:2]
        if isinstance(slices, Mapping):
            graphs = _count(slices)
    elif isinstance(loaded, list):
        graphs, loaded = len(loaded), loaded[0] if loaded else {}
    if graphs != 1:
        raise DataError(
            f"{where}: expected one graph, got {graphs}; save one of them, torch.save(dataset[0], 'one.pt'), or "
            "name a network of yours for all of them, FILE:model=net.py:Net"
        )
    fields = loaded.to_dict() if hasattr(loaded, "to_dict") else loaded
    if not isinstance(fields, Mapping):
        raise DataError(
            f"{where}: expected a .pt of plain tensors by name, got a {type(fields).__name__}; save a torch_geometric "
            "Data or a dict of tensors"
        )
    return fields


def _array(tensor: Tensor, key: str, where: str) -> Array:
    """View a dense tensor as an array; NumPy does not know bfloat16."""
    if tensor.layout != torch.strided:
        raise DataError(f"{where}: {key} must be a dense tensor, got {tensor.layout}; save its to_dense()")
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy())


def _features(tensor: Tensor, where: str) -> Any:
    """Return features as an array if they are dense, else as a CSR matrix."""
    if tensor.layout == torch.strided:
        return checked_features(_array(tensor, "x", where), where)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows = tensor if tensor.layout == torch.sparse_csr else tensor.coalesce().to_sparse_csr()
    data, indices, indptr = (_array(t, "x", where) for t in (rows.values(), rows.col_indices(), rows.crow_indices()))
    return csr(data, indices, indptr, np.array(rows.shape), where)


def _geometric_names() -> list[Any]:
    """Return the classes that a saved `Data` consists of."""
    from torch_geometric.data import data, storage

    return [data.Data, data.DataEdgeAttr, data.DataTensorAttr, storage.GlobalStorage]
