"""Checks of arrays that nobody vouches for: numbers, node numbers, labels, masks, sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.loop import check_fits
from mldd.problems.data import SPLITS, UNLABELLED, DataError

Array = NDArray[Any]


def csr(data: Array, indices: Array, indptr: Array, shape: Any, where: str) -> sp.csr_matrix:
    """Return a float64 CSR matrix made of pieces that nobody vouches for.

    Parameters
    ----------
    data, indices, indptr : array
        Values, columns, and where every row begins.
    shape : array, shape (2,)
        Rows and columns.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        If the pieces do not fit together or an entry is not a finite number.
    """
    size = integers(np.asarray(shape), where, "shape")
    if size.shape != (2,) or size.min() < 1:
        raise DataError(f"{where}: expected a shape of two positive sizes, got {size.tolist()}; write the matrix anew")
    rows, columns = (int(s) for s in size)
    values = numbers(np.asarray(data), where, "matrix data")
    index, start = integers(np.asarray(indices), where, "indices"), integers(np.asarray(indptr), where, "indptr")
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


def numbers(values: Array, where: str, what: str) -> NDArray[np.float64]:
    """Return finite real numbers as float64.

    Parameters
    ----------
    values : array
        Of any dtype.
    where, what : str
        Name source and array in errors.

    Raises
    ------
    DataError
        They are no real numbers, or not finite.
    """
    if values.dtype.kind not in "buif":
        raise DataError(f"{where}: {what} must be real numbers, got dtype {values.dtype}; convert them")
    check_fits(8 * values.size, where, what)  # it may be one number, repeated over large dimensions
    result = values.astype(np.float64)
    bad = int(result.size - np.isfinite(result).sum())
    if bad:
        raise DataError(f"{where}: {what} must be finite, got {bad} entries that are NaN or infinite; clean them first")
    return result


def integers(values: Array, where: str, what: str) -> NDArray[np.int64]:
    """Return whole numbers as int64.

    Parameters
    ----------
    values : array
        Of any dtype.
    where, what : str
        Name source and array in errors.

    Raises
    ------
    DataError
        Their dtype is another one.
    """
    if values.dtype.kind not in "ui":
        raise DataError(f"{where}: {what} must be integers, got dtype {values.dtype}; convert them")
    check_fits(8 * values.size, where, what)
    return values.astype(np.int64)


def checked_labels(values: Array | None, nodes: int, where: str) -> NDArray[np.int64]:
    """Return labels: one class number 0, 1, ... per node, -1 for a node without label.

    Parameters
    ----------
    values : array, shape (n,) or (n, 1), optional
        As the file has them; None where it has none.
    nodes : int
        Number n of nodes.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        They are something else.
    """
    if values is None:
        return np.full(nodes, UNLABELLED)
    if np.issubdtype(values.dtype, np.floating):
        raise DataError(
            f"{where}: labels (class numbers) must be integers, got dtype {values.dtype}; convert them, or give a "
            "network of your own, which may fit numbers or several labels: model=net.py:Net"
        )
    labels = integers(values, where, "labels (class numbers)")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (nodes,):
        raise DataError(f"{where}: labels must have shape ({nodes},), got {labels.shape}; give one per node")
    if labels.min() < UNLABELLED or labels.max() >= max(nodes, 2):
        span = f"{labels.min()}..{labels.max()}"
        raise DataError(
            f"{where}: labels must be classes 0, 1, ..., fewer than nodes, or -1 for none, got {span}; renumber them"
        )
    return labels


def checked_edges(edges: Array, nodes: int, where: str) -> NDArray[np.int64]:
    """Return a list of edges, shape (2, E).

    Parameters
    ----------
    edges : array
        As the file has it.
    nodes : int
        Number n of nodes.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        It is something else.
    """
    index = integers(edges, where, "edges")
    if index.ndim != 2 or index.shape[0] != 2:
        raise DataError(f"{where}: edges must be two rows of node numbers, got shape {index.shape}; transpose them?")
    if index.size and (index.min() < 0 or index.max() >= nodes):
        raise DataError(
            f"{where}: edges must join nodes 0..{nodes - 1}, got {index.min()}..{index.max()}; renumber them"
        )
    return index


def checked_features(values: Array, where: str) -> NDArray[np.float64]:
    """Return dense features, shape (n, F).

    Parameters
    ----------
    values : array
        As the file has them.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        They have another shape, or are no finite numbers.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{where}: features must have shape (n, F), got {values.shape}; one row per node")
    return numbers(values, where, "features")


def checked_masks(
    found: Mapping[str, Array], nodes: int, where: str, *, columns: bool = False
) -> dict[str, Array] | None:
    """Return masks of train, validation and test, shape (splits, n) each; None where there is none.

    Parameters
    ----------
    found : dict
        Arrays of the file by name; those called train_mask, val_masks, ... are taken.
    nodes : int
        Number n of nodes.
    where : str
        Names the source in errors.
    columns : bool
        The file may have the splits in columns, (n, splits).

    Raises
    ------
    DataError
        Some are missing, have another shape, or do not fit together.
    """
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


def of_edges(found: Mapping[str, Array], edges: int, where: str) -> tuple[Array | None, Array | None]:
    """Return weights, shape (E,), and attributes, shape (E, k), of edges, float64; None where there are none.

    Parameters
    ----------
    found : mapping of str to array
        ``edge_weight``, shape (E,), and ``edge_attr``, shape (E, k) or (E,), as far as there are any.
    edges : int
        Number E of edges.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        If an array does not fit, is not finite, or a weight is not positive.
    """
    given = {name: numbers(np.asarray(values), where, name) for name, values in found.items()}
    for name, values in given.items():
        if values.ndim not in (1, 2) or len(values) != edges:
            raise DataError(f"{where}: {name} must have {edges} rows, one per edge, got shape {values.shape}; mend it")
    weights, attributes = given.get("edge_weight"), given.get("edge_attr")
    if weights is not None:
        weights = weights.reshape(edges, -1)
        if weights.shape[1] != 1:
            raise DataError(
                f"{where}: edge_weight must be one number per edge, got {weights.shape[1]}; name them edge_attr"
            )
        if edges and weights.min() <= 0:
            raise DataError(
                f"{where}: edge_weight must be > 0, got a minimum of {weights.min():g}; leave out edges of weight 0, "
                "and name numbers that are no weights edge_attr"
            )
        weights = weights[:, 0]
    return weights, None if attributes is None else attributes.reshape(edges, -1)
