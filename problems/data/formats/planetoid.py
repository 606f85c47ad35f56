"""The eight Planetoid files of a citation graph, read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.problems.data import UNLABELLED, DataError, GraphArrays, one_line
from mldd.problems.data.formats.checks import checked_edges, checked_features
from mldd.problems.data.formats.pickles import matrix_of, unpickle

Array = NDArray[Any]
_VALIDATION = 500


def read_planetoid(files: Mapping[str, bytes], where: str) -> GraphArrays:
    """Read the eight files: features are `allx`, then `tx` at rows `test.index`; rows in no file have no label.

    Parameters
    ----------
    files : dict
        Contents by ending: x, y, tx, ty, allx, ally, graph, test.index.
    where : str
        Names the source in errors.

    Returns
    -------
    GraphArrays
        Features of nodes in no file are zero, their label is -1.

    Raises
    ------
    DataError
        The files are damaged or do not fit together.

    References
    ----------
    Yang, Cohen, Salakhutdinov, arXiv:1603.08861.
    """
    objects = {key: unpickle(content, f"{where}.{key}") for key, content in files.items() if key != "test.index"}
    try:
        test = np.array(files["test.index"].split(), dtype=np.int64)
        allx, tx = (matrix_of(objects[key], f"{where}.{key}") for key in ("allx", "tx"))
        y, ally, ty = (
            checked_features(np.asarray(objects[key]), f"{where}.{key}").argmax(1) for key in ("y", "ally", "ty")
        )
        ends = _adjacency_lists(objects["graph"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: expected the eight Planetoid files, got {one_line(error)}; get them anew") from None
    known, nodes = allx.shape[0], int(test.max(initial=-1)) + 1
    sizes = (tx.shape[0], len(ty), len(test), len(np.unique(test)))
    consistent = (
        len(set(sizes)) == 1 and len(test) and test.min() >= known == len(ally) and allx.shape[1] == tx.shape[1]
    )
    if not consistent or len(y) + _VALIDATION > known:
        raise DataError(
            f"{where}: expected files that fit together, got allx {allx.shape}, tx/ty/test {sizes}; get them anew"
        )
    upper, lower = allx.tocoo(), tx.tocoo()
    entries = np.concatenate([upper.data, lower.data])
    rows, columns = np.concatenate([upper.row, test[lower.row]]), np.concatenate([upper.col, lower.col])
    labels = np.full(nodes, UNLABELLED, dtype=np.int64)
    labels[:known], labels[test] = ally, ty
    number = np.arange(nodes)
    train, validation = number < len(y), (number >= len(y)) & (number < len(y) + _VALIDATION)
    masks = {"train": train[None], "validation": validation[None], "test": np.isin(number, test)[None]}
    features = sp.csr_matrix((entries, (rows, columns)), shape=(nodes, allx.shape[1]))
    return GraphArrays(checked_edges(ends, nodes, where), features, labels, masks)


def _adjacency_lists(lists: Mapping[int, list[int]]) -> Array:
    """Turn {node: [neighbours]} into edges, shape (2, E)."""
    degree = np.fromiter((len(neighbours) for neighbours in lists.values()), dtype=np.int64, count=len(lists))
    column = np.fromiter(chain.from_iterable(lists.values()), dtype=np.int64)
    return np.stack([np.repeat(np.fromiter(lists, dtype=np.int64, count=len(lists)), degree), column])
