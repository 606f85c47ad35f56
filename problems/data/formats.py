"""Read graph files from untrusted bytes: Planetoid pickles, `.npz` layouts, torch_geometric `.pt`.

Nothing that a file names is ever executed: pickles are read with a list of allowed names, arrays with
`allow_pickle=False`, `.pt` files with `weights_only=True`. Whatever is wrong with a file becomes a `DataError`.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.loop import unreadable

Array = NDArray[Any]

SPLITS = ("train", "validation", "test")
_PLANETOID_VALIDATION = 500
_PT_FIELDS = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")


class DataError(ValueError):
    """Say in one line what is wrong with a data set: what was expected, what was found, the way out."""


@dataclass(frozen=True)
class Raw:
    """Hold what a file says about a graph, checked for shape and type but not yet for sense.

    Parameters
    ----------
    edge_index : array, shape (2, E), int64
    features : array or csr_matrix, shape (n, F), float64
    labels : array, shape (n,), int64
    masks : dict or None
        `train`, `validation`, `test`, each an array of bool, shape (splits, n).
    """

    edge_index: Array
    features: Any
    labels: Array
    masks: dict[str, Array] | None


# ---------------------------------------------------------------------------------------------------- pickles


class _Unpickler(pickle.Unpickler):
    """Read pickles of NumPy arrays, SciPy CSR matrices and dictionaries of lists, and refuse every other name.

    A CSR matrix arrives as an empty stand-in that collects the pieces, so that no SciPy code sees them unchecked.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        reconstruct = np.empty(0).__reduce__()[0]
        matrix = type("CsrPieces", (), {})
        self._allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("scipy.sparse.csr", "csr_matrix"): matrix,
            ("scipy.sparse._csr", "csr_matrix"): matrix,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("builtins", "list"): list,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed object; refuse the rest before it is imported."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no data file needs")
        return self._allowed[module, name]


def unpickle(content: bytes, where: str) -> Any:
    """Read a pickle of plain arrays safely.

    Raises
    ------
    DataError
        If the pickle is damaged or asks for anything but arrays, CSR matrices, lists and dictionaries.
    """
    try:
        return _Unpickler(content).load()
    except Exception as error:  # a hostile or damaged pickle can raise anything
        reason = _line(error)
    raise DataError(f"{where}: expected a pickle of plain arrays, got {reason}; get the file anew from its source")


def _line(error: BaseException) -> str:
    """Shorten an error to one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}" if words else type(error).__name__


# ---------------------------------------------------------------------------------------------------- pieces


def csr(data: Array, indices: Array, indptr: Array, shape: Any, where: str) -> sp.csr_matrix:
    """Build a float64 CSR matrix from pieces that nobody vouches for.

    Raises
    ------
    DataError
        If the pieces do not fit together or an entry is not a finite number.
    """
    size = _integers(np.asarray(shape), where, "shape")
    if size.shape != (2,) or size.min() < 1:
        raise DataError(f"{where}: expected a shape of two positive sizes, got {size.tolist()}; write the matrix anew")
    rows, columns = (int(s) for s in size)
    values = _numbers(np.asarray(data), where, "matrix data")
    index, start = _integers(np.asarray(indices), where, "indices"), _integers(np.asarray(indptr), where, "indptr")
    fits = (
        start.shape == (rows + 1,)
        and values.ndim == 1
        and index.shape == values.shape
        and start[0] == 0
        and start[-1] == index.size
        and bool((np.diff(start) >= 0).all())
        and (index.size == 0 or (index.min() >= 0 and index.max() < columns))
    )
    if not fits:
        raise DataError(
            f"{where}: expected the CSR pieces of a {rows} x {columns} matrix, got data {values.shape}, indices "
            f"{index.shape}, indptr {start.shape} that do not fit together; write the matrix anew"
        )
    matrix = sp.csr_matrix((values, index, start), shape=(rows, columns))
    matrix.sum_duplicates()
    return matrix


def _numbers(values: Array, where: str, what: str) -> NDArray[np.float64]:
    """Check for finite real numbers, as float64."""
    if values.dtype.kind not in "buif":
        raise DataError(f"{where}: {what} must be real numbers, got dtype {values.dtype}; convert them")
    result = values.astype(np.float64)
    bad = int(result.size - np.isfinite(result).sum())
    if bad:
        raise DataError(f"{where}: {what} must be finite, got {bad} entries that are NaN or infinite; clean them first")
    return result


def _integers(values: Array, where: str, what: str) -> NDArray[np.int64]:
    """Check for integers, as int64."""
    if values.dtype.kind not in "ui":
        raise DataError(f"{where}: {what} must be integers, got dtype {values.dtype}; convert them")
    return values.astype(np.int64)


def _labels(values: Array, nodes: int, where: str) -> NDArray[np.int64]:
    """Check labels: one class number 0, 1, ... per node."""
    labels = _integers(values, where, "labels (class numbers)")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (nodes,):
        raise DataError(f"{where}: labels must have shape ({nodes},), got {labels.shape}; give one per node")
    if labels.min() < 0 or labels.max() >= max(nodes, 2):
        span = f"{labels.min()}..{labels.max()}"
        raise DataError(f"{where}: labels must be classes 0, 1, ..., fewer than nodes, got {span}; renumber them")
    return labels


def _edges(edges: Array, nodes: int, where: str) -> NDArray[np.int64]:
    """Check a list of edges, shape (2, E)."""
    index = _integers(edges, where, "edges")
    if index.ndim != 2 or index.shape[0] != 2:
        raise DataError(f"{where}: edges must be two rows of node numbers, got shape {index.shape}; transpose them?")
    if index.size and (index.min() < 0 or index.max() >= nodes):
        raise DataError(
            f"{where}: edges must join nodes 0..{nodes - 1}, got {index.min()}..{index.max()}; renumber them"
        )
    return index


def _features(values: Array, where: str) -> NDArray[np.float64]:
    """Check dense features, shape (n, F)."""
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{where}: features must have shape (n, F), got {values.shape}; one row per node")
    return _numbers(values, where, "features")


def _masks(found: Mapping[str, Array], nodes: int, where: str, *, columns: bool = False) -> dict[str, Array] | None:
    """Collect masks, shape (splits, n) each; None where there is none. `columns`: a file may hold (n, splits)."""
    names = {"train": "train", "validation": "val", "test": "test"}
    present = {
        s: found[key] for s, short in names.items() for key in (f"{short}_mask", f"{short}_masks") if key in found
    }
    if not present:
        return None
    if len(present) < len(SPLITS):
        raise DataError(
            f"{where}: expected masks train, val and test or none, got {sorted(present)} alone; add the rest"
        )
    masks = {}
    for name, mask in present.items():
        rows = mask[None, :] if mask.ndim == 1 else mask.T if columns else mask
        if mask.dtype != np.bool_ or rows.ndim != 2 or rows.shape[1] != nodes or len(rows) == 0:
            raise DataError(f"{where}: {name} mask must be bool, one per node ({nodes}), got {mask.dtype} {mask.shape}")
        masks[name] = rows
    if len({len(rows) for rows in masks.values()}) > 1:
        raise DataError(
            f"{where}: expected as many train as val and test masks, got {[len(m) for m in masks.values()]}"
        )
    return masks


# ---------------------------------------------------------------------------------------------------- layouts


def read_planetoid(files: Mapping[str, bytes], where: str) -> Raw:
    """Read the eight Planetoid files: features are `allx`, then `tx` at rows `test.index`, zero at rows in no file.

    Parameters
    ----------
    files : dict
        Contents by ending: x, y, tx, ty, allx, ally, graph, test.index.
    where : str
        Names the source in errors.

    References
    ----------
    Yang, Cohen, Salakhutdinov, arXiv:1603.08861.
    """
    objects = {key: unpickle(content, f"{where}.{key}") for key, content in files.items() if key != "test.index"}
    try:
        test = np.array(files["test.index"].split(), dtype=np.int64)
        allx, tx = (_pieces(objects[key], f"{where}.{key}") for key in ("allx", "tx"))
        y, ally, ty = (_features(np.asarray(objects[key]), f"{where}.{key}").argmax(1) for key in ("y", "ally", "ty"))
        ends = _adjacency_lists(objects["graph"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: expected the eight Planetoid files, got {_line(error)}; get them anew") from None
    known, nodes = allx.shape[0], int(test.max(initial=-1)) + 1
    sizes = (tx.shape[0], len(ty), len(test), len(np.unique(test)))
    consistent = (
        len(set(sizes)) == 1 and len(test) and test.min() >= known == len(ally) and allx.shape[1] == tx.shape[1]
    )
    if not consistent or len(y) + _PLANETOID_VALIDATION > known:
        raise DataError(f"{where}: expected files that fit together, got allx {allx.shape}, tx/ty/test {sizes}")
    upper, lower = allx.tocoo(), tx.tocoo()
    entries = np.concatenate([upper.data, lower.data])
    rows, columns = np.concatenate([upper.row, test[lower.row]]), np.concatenate([upper.col, lower.col])
    labels = np.zeros(nodes, dtype=np.int64)
    labels[:known], labels[test] = ally, ty
    number = np.arange(nodes)
    train, validation = number < len(y), (number >= len(y)) & (number < len(y) + _PLANETOID_VALIDATION)
    masks = {"train": train[None], "validation": validation[None], "test": np.isin(number, test)[None]}
    features = sp.csr_matrix((entries, (rows, columns)), shape=(nodes, allx.shape[1]))
    return Raw(_edges(ends, nodes, where), features, labels, masks)


def _pieces(stand_in: Any, where: str) -> sp.csr_matrix:
    """Build the CSR matrix whose pieces the unpickler collected."""
    state = dict(vars(stand_in))
    shape = state.get("_shape", state.get("shape"))
    return csr(state["data"], state["indices"], state["indptr"], shape, where)


def _adjacency_lists(lists: Mapping[int, list[int]]) -> Array:
    """Turn {node: [neighbours]} into edges, shape (2, E)."""
    degree = np.fromiter((len(neighbours) for neighbours in lists.values()), dtype=np.int64, count=len(lists))
    column = np.fromiter(chain.from_iterable(lists.values()), dtype=np.int64)
    return np.stack([np.repeat(np.fromiter(lists, dtype=np.int64, count=len(lists)), degree), column])


def read_npz(content: bytes, where: str) -> Raw:
    """Read a `.npz`: the gnn-benchmark layout or that of the heterophilous sets.

    The first has `adj_data/indices/indptr/shape`, `attr_data/indices/indptr/shape` or `attr_matrix`, `labels`; the
    second `edges` (E, 2), `node_features`, `node_labels`. Both may have `train/val/test_masks` (splits, n) or `_mask`.

    Raises
    ------
    DataError
        For a file that is no such thing.
    """
    arrays = _arrays(content, where)
    missing = {"adj_indptr", "labels"} - arrays.keys(), {"edges", "node_features", "node_labels"} - arrays.keys()
    if all(missing):
        wanted = "adj_data, adj_indices, adj_indptr, adj_shape, attr_... (or attr_matrix), labels"
        raise DataError(f"{where}: expected the arrays {wanted}, got {', '.join(sorted(arrays)[:12]) or 'none'}")
    try:
        if missing[1]:
            adjacency = _named(arrays, "adj", where)
            if adjacency.shape[0] != adjacency.shape[1]:
                raise DataError(f"{where}: expected a square adjacency, got {adjacency.shape}; one row per node")
            dense = arrays.get("attr_matrix")
            features = _named(arrays, "attr", where) if dense is None else _features(dense, where)
            edges, labels = np.stack(adjacency.nonzero()), arrays["labels"]
        else:
            features, labels = _features(arrays["node_features"], where), arrays["node_labels"]
            edges = arrays["edges"].T
    except KeyError as error:
        raise DataError(f"{where}: expected an array {error}, got none; write it into the file") from None
    nodes = int(features.shape[0])
    if not missing[0] and adjacency.shape[0] != nodes:
        raise DataError(f"{where}: expected features of {adjacency.shape[0]} nodes, got {nodes} rows; one row per node")
    return Raw(_edges(edges, nodes, where), features, _labels(labels, nodes, where), _masks(arrays, nodes, where))


def _arrays(content: bytes, where: str) -> dict[str, Array]:
    """Load all arrays of a `.npz` without pickles."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)):
            pass  # np.load takes everything else for a pickle, and advises to trust it
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, zlib, header parser: each has its own exceptions
        reason = "it holds objects" if "allow_pickle" in str(error) else _line(error)
    raise DataError(f"{where}: expected a .npz of plain arrays, got {len(content)} bytes ({reason}); write it anew")


def _named(arrays: Mapping[str, Array], prefix: str, where: str) -> sp.csr_matrix:
    data, indices, indptr, shape = (arrays[f"{prefix}_{piece}"] for piece in ("data", "indices", "indptr", "shape"))
    return csr(data, indices, indptr, shape, f"{where} ({prefix}_*)")


def read_graphdata(content: bytes, where: str) -> Raw:
    """Read a `.npz` of the GraphData repository, SciPy matrices pickled into arrays of objects, without trusting it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(f"{name}.npy") for name in ("adj_matrix", "node_attr", "node_label")}
        stream = {name: io.BytesIO(member) for name, member in members.items()}
        for name in ("adj_matrix", "node_attr"):
            np.lib.format.read_magic(stream[name])
            np.lib.format.read_array_header_1_0(stream[name])
        labels = np.load(stream["node_label"], allow_pickle=False)
    except Exception as error:  # zip, zlib, header parser: each has its own exceptions
        raise DataError(f"{where}: expected a file of GraphData, got {_line(error)}; get it anew") from None
    boxes = {name: unpickle(stream[name].read(), where) for name in ("adj_matrix", "node_attr")}
    try:
        adjacency, features = (_pieces(boxes[name].item(), where) for name in ("adj_matrix", "node_attr"))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: expected pickled CSR matrices, got {_line(error)}; get it anew") from None
    nodes = int(features.shape[0])
    return Raw(_edges(np.stack(adjacency.nonzero()), nodes, where), features, _labels(labels, nodes, where), None)


def read_pt(content: bytes, where: str) -> Raw:
    """Read a torch_geometric `Data` or a dictionary of tensors x, edge_index, y and optional train/val/test_mask.

    Raises
    ------
    DataError
        If the file holds anything else, or is a torch_geometric file and torch_geometric is missing.
    """
    found = _fields(content, where)
    missing = {"x", "edge_index", "y"} - found.keys()
    if missing:
        raise DataError(f"{where}: expected tensors x, edge_index, y, got no {', '.join(sorted(missing))}; add them")
    x = found.pop("x")
    features = csr(x[0], x[1], x[2], x[3], where) if isinstance(x, tuple) else _features(x, where)
    nodes = int(features.shape[0])
    masks = _masks(found, nodes, where, columns=True)
    return Raw(_edges(found["edge_index"], nodes, where), features, _labels(found["y"], nodes, where), masks)


def _fields(content: bytes, where: str) -> dict[str, Any]:
    """Load the tensors of a `.pt` file without executing anything in it, as arrays; a sparse one as its CSR pieces."""
    try:
        names = _geometric_names() if b"torch_geometric" in content else []
        checked: Any = torch.sparse.check_sparse_tensor_invariants
        with torch.serialization.safe_globals(names), checked(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        fields = loaded if isinstance(loaded, dict) else loaded.to_dict()
        found = {key: fields[key] for key in _PT_FIELDS if isinstance(fields.get(key), Tensor)}
        return {key: _pieces_of(value) if key == "x" else _array(value) for key, value in found.items()}
    except ModuleNotFoundError:
        reason, way = "a torch_geometric file", "pip install torch_geometric, or save a plain dict of the tensors"
    except Exception as error:  # a hostile or damaged file can raise anything
        reason, way = unreadable(error), "save a torch_geometric Data or a dict of tensors"
    raise DataError(f"{where}: expected a .pt of plain tensors, got {len(content)} bytes ({reason}); {way}")


def _array(tensor: Tensor) -> Array:
    """View a dense tensor as an array; NumPy does not know bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def _pieces_of(tensor: Tensor) -> Any:
    """View a tensor as an array if it is dense, else as data, indices, indptr and shape."""
    if tensor.layout == torch.strided:
        return _array(tensor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows = tensor if tensor.layout == torch.sparse_csr else tensor.coalesce().to_sparse_csr()
    return _array(rows.values()), _array(rows.col_indices()), _array(rows.crow_indices()), tuple(rows.shape)


def _geometric_names() -> list[Any]:
    """Return the classes that a saved `Data` consists of."""
    from torch_geometric.data import data, storage

    return [data.Data, data.DataEdgeAttr, data.DataTensorAttr, storage.GlobalStorage]


# ---------------------------------------------------------------------------------------------------- features


def normalised_rows(features: Any) -> Any:
    """Divide rows of non-negative features by their sums; leave rows of zeros, and features with signs, alone."""
    if features.min() < 0:
        return features
    sums = np.asarray(features.sum(axis=1), dtype=np.float64).ravel()
    inverse = np.divide(1.0, sums, out=np.ones_like(sums), where=sums > 0)
    return sp.csr_matrix(sp.diags(inverse) @ features) if sp.issparse(features) else inverse[:, None] * features


def to_tensor(features: Any) -> Tensor:
    """Turn a matrix into a tensor: sparse CSR below 10 % non-zeros, dense otherwise."""
    cells = features.shape[0] * features.shape[1]
    nonzeros = features.count_nonzero() if sp.issparse(features) else np.count_nonzero(features)
    if nonzeros >= 0.1 * cells:
        return torch.from_numpy(np.asarray(features.toarray() if sp.issparse(features) else features, dtype=np.float64))
    matrix = sp.csr_matrix(features, dtype=np.float64)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    pointers, columns = (torch.from_numpy(a.astype(np.int64)) for a in (matrix.indptr, matrix.indices))
    values, size = torch.from_numpy(matrix.data), tuple(matrix.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointers, columns, values, size=size, check_invariants=True)


def from_tensor(features: Tensor) -> Any:
    """View features as a NumPy array or a SciPy CSR matrix."""
    if features.layout == torch.strided:
        return features.numpy()
    pieces = (features.values().numpy(), features.col_indices().numpy(), features.crow_indices().numpy())
    return sp.csr_matrix(pieces, shape=tuple(features.shape))
