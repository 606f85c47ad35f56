"""Locate, check, read and download data sets: graphs for node classification and the digits images."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph
from mldd.problems.data.contents import (
    SPLITS,
    UNLABELLED,
    DataError,
    GraphArrays,
    checksum,
    notes_of_edges,
    unused_note,
)
from mldd.problems.data.features import from_tensor, normalised_rows, to_tensor
from mldd.problems.data.formats import is_file_name, read_graph, read_graphdata, read_planetoid
from mldd.problems.data.known_files import KnownFile, obtain

__all__ = ["NAMES", "DataError", "GraphData", "digits_graph", "load_digits_images", "load_graph", "sbm"]

NAMES = ("cora", "citeseer", "photo", "physics", "minesweeper", "texas", "digits-graph", "sbm")

_GITHUB = "https://raw.githubusercontent.com"
_PLANETOID = f"{_GITHUB}/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"
_GRAPHDATA = f"{_GITHUB}/EdisonLeeeee/GraphData/f8022c26b917346f2a461ffec0ec5ae24b36de68/datasets"
_YANDEX = f"{_GITHUB}/yandex-research/heterophilous-graphs/a431395582e929d88271309716bea4fe24ce6318/data"

_PLANETOID_FOLDERS = {"cora": "Cora", "citeseer": "CiteSeer"}
NORMALISED = tuple(_PLANETOID_FOLDERS)  # sets whose features are divided by the sums of their rows
_PLANETOID_SUMS = {
    "citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
}


# Sets of plain arrays: the file as a data folder has it, then one of the same contents that can be downloaded.
_ARRAYS = {
    "photo": (
        KnownFile(
            "amazon/Photo/raw/amazon_electronics_photo.npz",
            "616582b757950a34e573543c4d3c02e1087c11d5ad3b324aa1b0ddb95db1c99d",
            None,
        ),
        KnownFile(
            "amazon/Photo/graphdata/amazon_photo.npz",
            "bdb98b54cd3125bfa69b23ba0aae84fabcb770c6727175b8f6eb1d64f3be4b2b",
            f"{_GRAPHDATA}/amazon_photo.npz",
        ),
    ),
    "physics": (
        KnownFile(
            "coauthor/Physics/raw/ms_academic_phy.npz",
            "16df58ffe9c5d6e73220f42cc5a9f7056d2f7d076d779d9d73f1d2470f9e6592",
            None,
        ),
        KnownFile(
            "coauthor/Physics/graphdata/coauthor_phy.npz",
            "1c930d99910763bc5f0c1aa90e8baa945f5ad6027663fe5332d0f08fde33cd7d",
            f"{_GRAPHDATA}/coauthor_phy.npz",
        ),
    ),
    "minesweeper": (
        KnownFile(
            "heterophilous/minesweeper/raw/minesweeper.npz",
            "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
            f"{_YANDEX}/minesweeper.npz",
        ),
    ),
    "texas": (
        KnownFile(
            "heterophilous_extra/texas.npz",
            "b164b99e6c3d43e4ab07488ec59bd8c815f90cbc1bd4cf425ce587d2b534d844",
            f"{_YANDEX}/texas.npz",
        ),
    ),
}


@dataclass(frozen=True, eq=False)
class GraphData:
    """Hold a graph for node classification; everything is checked when it is made.

    Parameters
    ----------
    name : str
        Of the set or the file.
    graph : Graph
        With n nodes.
    features : Tensor, shape (n, F), float64
        Dense, or sparse CSR where fewer than 10 % of the entries are non-zero.
    labels : LongTensor, shape (n,)
        Classes 0..classes-1; -1 for a node without label.
    train, validation, test : BoolTensor, shape (n,)
        Disjoint and not empty; nodes without label are in none.
    classes : int
        Number of classes.
    metric : {'accuracy', 'auc'}
        By which results on this set are compared.
    notes : tuple of str
        What was done to the data of a file, and what of it is not used, a sentence each.

    Raises
    ------
    DataError
        If anything of this does not hold.
    """

    name: str
    graph: Graph
    features: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    classes: int
    metric: Literal["accuracy", "auc"] = "accuracy"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, features, labels = self.graph.nodes, self.features, self.labels
        if features.dim() != 2 or features.shape[0] != n or features.dtype != torch.float64:
            self._refuse(f"features must be float64 of shape ({n}, F), got {features.dtype} {tuple(features.shape)}")
        entries = features if features.layout == torch.strided else features.values()
        if not bool(torch.isfinite(entries).all()):
            self._refuse("features must be finite, got NaN or infinity; clean them first")
        if labels.dtype != torch.int64 or labels.shape != (n,):
            self._refuse(f"labels must be int64 of shape ({n},), got {labels.dtype} {tuple(labels.shape)}")
        span = (int(labels.min()), int(labels.max()))
        if span[0] < UNLABELLED or span[1] >= self.classes or self.classes < 2:
            self._refuse(f"labels must be in 0..classes-1 of >= 2 classes, got {span[0]}..{span[1]}, {self.classes}")
        if self.metric not in ("accuracy", "auc") or (self.metric == "auc" and self.classes != 2):
            self._refuse(f"metric must be accuracy, or auc for 2 classes, got {self.metric} for {self.classes} classes")
        self._check_masks(n)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of graph, features, labels and masks."""
        x = from_tensor(self.features)
        pieces = [x.data, x.indices, x.indptr] if sp.issparse(x) else [x]
        tensors = (self.graph.indptr, self.graph.indices, self.labels, self.train, self.validation, self.test)
        of_edges = (t for t in (self.graph.weights, self.graph.edge_attributes) if t is not None)
        return checksum(*pieces, *(tensor.numpy() for tensor in (*tensors, *of_edges)))

    def _check_masks(self, nodes: int) -> None:
        masks = dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))
        for name, mask in masks.items():
            if mask.dtype != torch.bool or mask.shape != (nodes,):
                self._refuse(f"{name} mask must be bool of shape ({nodes},), got {mask.dtype} {tuple(mask.shape)}")
            if not bool(mask.any()):
                self._refuse(f"{name} mask must hold at least one node, got none; give other masks or leave them out")
        twice = int((torch.stack(list(masks.values())).sum(0) > 1).sum())
        bare = int((torch.stack(list(masks.values())).any(0) & (self.labels == UNLABELLED)).sum())
        if bare:
            self._refuse(f"masks must hold nodes with labels, got {bare} without (-1); take them out of the masks")
        if twice:
            self._refuse(f"masks must be disjoint, got {twice} nodes in several; give other masks or leave them out")

    def _refuse(self, what: str) -> None:
        raise DataError(f"{self.name}: {what}")


def load_graph(
    name: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: int = 0,
    row_normalise: bool | None = None,
    reader: str = "",
) -> GraphData:
    """Return a graph for node classification by name, or from a file of the user's.

    Known files are looked for in `data`, `$MLDD_DATA`, `../shared/data` (from the repository and from the working
    folder) and the user's cache, are downloaded into the cache otherwise, and must have the right checksum.

    Parameters
    ----------
    name : str or path
        One of `NAMES`, or a file: `.npz` (gnn-benchmark layout), `.pt` (torch_geometric `Data` or a dict of tensors),
        or one that `reader` reads.
    data : path, optional
        Folder to look into first. Nothing is written there.
    split : int
        Row of the masks where there are several; seed of the drawing where there are none (20 training, 30 validation
        nodes per class, at most a third of the class each, the rest test); without meaning for Cora and CiteSeer.
    row_normalise : bool, optional
        Divide every row of non-negative features by its sum; the default does so for Cora and CiteSeer alone, which is
        the usual recipe. Not for `minesweeper`, `digits-graph` and `sbm`, whose features are no counts.
    reader : str
        Of a file, where its suffix does not say it: a suffix, ``file.py:function`` or ``package.module:function``.

    Raises
    ------
    DataError
        If the data set is unknown, nowhere to be had, damaged, or makes no sense.
    ValueError
        A negative split.
    """
    key = os.fspath(name)
    if split < 0:
        raise ValueError(f"`split` must be >= 0, got {split}")
    if key == "sbm":
        return sbm(split=split)
    if key == "digits-graph":
        return digits_graph(split=split)
    if key in _PLANETOID_FOLDERS:
        raw, split = _planetoid(key, data), 0
    elif key in _ARRAYS:
        raw = _known(key, data)
    elif reader or is_file_name(key):
        raw = _of_user(key, reader)
    else:
        raise DataError(f"data set must be one of {', '.join(NAMES)}, or a file .npz or .pt, got {key!r}")
    normalise = key in NORMALISED if row_normalise is None else row_normalise and key != "minesweeper"
    return _assembled(key, raw, split, normalise)


def _of_user(key: str, reader: str) -> GraphArrays:
    """Read a file of the user's, and say what of it is lost."""
    raw = read_graph(key, reader)
    if raw.unused:
        warnings.warn(f"{key}: {unused_note(raw.unused)[0]}", stacklevel=3)
    notes = (*raw.notes, *notes_of_edges(raw))
    if raw.edge_attributes is not None and raw.edge_attributes.shape[1] == 1 and raw.edge_weights is None:
        advice = "edge_attr has one number per edge: an attribute for layers that take some (transformer), no weight"
        warnings.warn(f"{key}: {advice}; name it edge_weight if it is one", stacklevel=3)
    return replace(raw, notes=(*notes, *unused_note(raw.unused)))


def _planetoid(name: str, data: str | os.PathLike[str] | None) -> GraphArrays:
    """Read Cora or CiteSeer."""
    folder = _PLANETOID_FOLDERS[name]
    contents = {}
    for ending in ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index"):
        file = f"ind.{name}.{ending}"
        known = KnownFile(f"planetoid/{folder}/raw/{file}", _PLANETOID_SUMS[f"{name}.{ending}"], f"{_PLANETOID}/{file}")
        contents[ending] = obtain(name, (known,), data)[1].read_bytes()
    return read_planetoid(contents, f"ind.{name}")


def _known(name: str, data: str | os.PathLike[str] | None) -> GraphArrays:
    """Read a known set of plain arrays; the features of Photo and Physics become 0 and 1."""
    files = _ARRAYS[name]
    file, found = obtain(name, files, data)
    raw = read_graphdata(found.read_bytes(), name) if "graphdata" in file.place else read_graph(found)
    if name in ("photo", "physics"):
        raw.features.data = (raw.features.data > 0).astype(np.float64)
    return raw


# ---------------------------------------------------------------------------------------------------- assembly


def _assembled(name: str, raw: GraphArrays, split: int, normalise: bool) -> GraphData:
    """Make the graph, the tensors and the split of what a file says."""
    nodes, classes = len(raw.labels), int(raw.labels.max()) + 1
    if classes == 0:
        raise DataError(f"{name}: expected labels (y, node_labels or labels) of some nodes, got none; add them")
    labels = torch.from_numpy(raw.labels)
    if raw.masks is None:
        largest = int(torch.bincount(labels[labels >= 0]).max())
        if classes > 1 and largest < 3:
            raise DataError(
                f"{name}: expected masks, or a class of >= 3 nodes to draw a split from, got at most {largest} nodes "
                "per class; add train_mask, val_mask, test_mask"
            )
        masks = _drawn(labels, split)
    else:
        count = len(raw.masks["train"])
        if split >= count:
            raise DataError(f"{name}: `split` must be < {count} (the splits in the file), got {split}; choose another")
        train, validation, test = (torch.from_numpy(raw.masks[part][split].copy()) for part in SPLITS)
        masks = (train, validation, test)
    bare = labels == UNLABELLED
    inside = int((bare & (masks[0] | masks[1] | masks[2])).sum())
    notes = raw.notes
    if bool(bare.any()) and name not in NAMES:
        notes = (*notes, f"{int(bare.sum())} nodes have no label (-1): they are in no loss and no metric")
    if inside:
        masks = (masks[0] & ~bare, masks[1] & ~bare, masks[2] & ~bare)
    edges = torch.from_numpy(np.ascontiguousarray(raw.edge_index))
    of_edges = (None if a is None else torch.from_numpy(a) for a in (raw.edge_weights, raw.edge_attributes))
    graph = Graph.from_edges(edges, nodes, *of_edges)
    features = normalised_rows(raw.features) if normalise else raw.features
    metric: Literal["accuracy", "auc"] = "auc" if name == "minesweeper" else "accuracy"
    return GraphData(name, graph, to_tensor(features), labels, *masks, classes, metric, notes)


def _drawn(labels: Tensor, seed: int, train: int = 20, validation: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a split: per class `train` and `validation` nodes, each at most a third of the class; the rest is test.

    Nodes without label are in no part.
    """
    if bool((labels < 0).any()):
        known = labels >= 0
        parts = torch.zeros(3, len(labels), dtype=torch.bool)
        parts[:, known] = torch.stack(_drawn(labels[known], seed, train, validation))
        return parts[0], parts[1], parts[2]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]  # by class, at random within
    sizes = torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    first = torch.clamp(sizes // 3, max=train).clamp(min=1)[labels]
    second = first + torch.clamp(sizes // 3, max=validation)[labels]
    return rank < first, (rank >= first) & (rank < second), rank >= second


# ---------------------------------------------------------------------------------------------------- made here


def load_digits_images() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits.

    Returns
    -------
    images : Tensor, shape (1797, 64), float64
        Pixels of 8 x 8 images in 0..1.
    labels : LongTensor, shape (1797,)
        Which digit.

    Raises
    ------
    DataError
        scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits need scikit-learn, which is not installed: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images.astype(np.float64) / 16), torch.from_numpy(labels.astype(np.int64))


def digits_graph(*, neighbours: int = 8, split: int = 0) -> GraphData:
    """Return the symmetrised graph of nearest neighbours of scikit-learn's digits, features the 64 pixels in 0..1.

    Parameters
    ----------
    neighbours : int
        Nearest images of each.
    split : int
        Seed of the drawn split.

    Raises
    ------
    ValueError
        As many neighbours as images, or none.
    """
    images, labels = load_digits_images()
    if not 1 <= neighbours < len(labels):
        raise ValueError(f"`neighbours` must be in 1..{len(labels) - 1}, got {neighbours}")
    pixels = (images * 16).numpy()
    squares = (pixels * pixels).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T  # exact: small integers
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :neighbours]
    edges = np.stack([np.repeat(np.arange(len(labels)), neighbours), nearest.ravel()])
    graph = Graph.from_edges(torch.from_numpy(edges), len(labels))
    return GraphData("digits-graph", graph, images, labels, *_drawn(labels, split), classes=10)


def sbm(
    *,
    nodes: int = 4000,
    classes: int = 8,
    features: int = 32,
    inside: float = 12.0,
    outside: float = 4.0,
    noise: float = 8.0,
    seed: int = 0,
    split: int = 0,
) -> GraphData:
    """Return a planted-partition graph with noisy features x_i = mu_(class of i) + noise * z_i, mu and z normal.

    Parameters
    ----------
    nodes, classes, features : int
        Sizes; classes are as equal as possible.
    inside, outside : float
        Expected number of neighbours of a node in its own class and in the others.
    noise : float
        Standard deviation of the noise, in that of the class means.
    seed, split : int
        Seed of the graph and the features; seed of the drawn split.

    Raises
    ------
    ValueError
        Sizes or numbers of which no graph can be made.
    """
    if classes < 2 or nodes < 4 * classes or features < 1 or min(inside, outside, noise) < 0 or seed < 0:
        got = (
            f"nodes={nodes}, classes={classes}, features={features}, inside={inside}, outside={outside}, noise={noise}"
        )
        raise ValueError(f"sbm must have >= 2 classes of >= 4 nodes, >= 1 feature, no negative option, got {got}")
    random = np.random.default_rng(seed)
    labels = np.arange(nodes) * classes // nodes
    sizes = np.bincount(labels)
    start, size = (np.cumsum(sizes) - sizes)[labels], sizes[labels]
    row = random.integers(nodes, size=int(nodes * inside / 2))
    other = random.integers(nodes, size=int(nodes * outside / 2))
    friends = start[row] + _below(random, size[row])
    strangers = (start[other] + size[other] + _below(random, nodes - size[other])) % nodes
    shuffle = random.permutation(nodes)
    edges = shuffle[np.stack([np.concatenate([row, other]), np.concatenate([friends, strangers])])]
    means = random.standard_normal((classes, features))
    matrix, placed = np.empty((nodes, features)), np.empty(nodes, dtype=np.int64)
    matrix[shuffle] = means[labels] + noise * random.standard_normal((nodes, features))
    placed[shuffle] = labels
    target = torch.from_numpy(placed)
    graph = Graph.from_edges(torch.from_numpy(edges), nodes)
    return GraphData("sbm", graph, torch.from_numpy(matrix), target, *_drawn(target, split), classes)


def _below(random: np.random.Generator, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw an integer below each limit."""
    return random.integers(limits)
