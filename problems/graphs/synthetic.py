"""Node classification on a grid of any size, of which every rank makes its own strip: nothing is ever gathered.

Nodes are numbered row by row; a strip is a range of rows. Features and masks of a node follow from the seed and its
number alone, by a counter-based generator, so that the graph and the data do not depend on the number of ranks, and
features of the halo can be made where they are needed. Labels come from a hidden teacher: with T ~ N(0, 1), ::

    label_i = argmax_c ((A + I) X T)_ic,        X_if uniform in (-sqrt(3), sqrt(3)), of variance 1,

which a network of one propagating layer can learn and one that does not look at neighbours cannot. The labels are
computed without rounding: multiples of 2^-24 times multiples of 2^-10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.algebra import check_least
from mldd.problems.data import CutGraph, HaloNodes, NodeData, Shard, ShardEdges, grid_rows, shares
from mldd.problems.graphs.graph_options import Network
from mldd.problems.graphs.sharded import ShardedClassification

Ints = NDArray[np.int64]
Singles = NDArray[np.float32]

_BLOCK = 8  # single-precision numbers that the generator makes of one count
_FEATURES, _MASKS, _TEACHER = range(3)  # streams of numbers
_TRAIN, _VALIDATION = 0.5, 0.25  # shares of the nodes; the rest is for testing
_CHUNK = 2**17  # nodes whose features are held in double precision at a time


@dataclass(frozen=True)
class Strips:
    """A grid that is cut into strips of rows, and what its nodes carry.

    Parameters
    ----------
    nodes : int
        Least number of nodes: the grid has that many or fills its last row.
    degree : {2, 4, 6, 8, 10, 12}
        Neighbours of an inner node.
    features, classes : int
        Features of a node, labels.
    columns : int
        Of the grid, which are the rows of a halo per neighbour and layer of stencil; 0: as many as it has rows.
    parts : int
        Number of strips, of which every rank makes consecutive ones; subdomains and clusters follow them. 0: one per
        rank, so that only the loss is the same on any number of ranks, and no training by subdomains or levels.

    Raises
    ------
    ValueError
        Values out of range.
    """

    nodes: int = 100_000
    degree: int = 10
    features: int = 64
    classes: int = 8
    columns: int = 0
    parts: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_least(self, {"parts": 0})
        if self.nodes < 2 or not 0 <= self.columns <= self.nodes:
            raise ValueError(
                f"`nodes` must be >= 2 and `columns` in 0..{self.nodes}, got {self.nodes} and {self.columns}"
            )


@dataclass(frozen=True)
class SyntheticClassification(ShardedClassification):
    """Classify the nodes of a grid that the ranks make themselves, each its own strips.

    Parameters
    ----------
    strips : Strips
        The grid, and what its nodes carry.
    **others
        As for `ShardedClassification`; `seed` is that of the data, too.
    network : Network
        64 units in hidden layers, no dropout, no decay.
    dtype : {"float64", "float32"}
        float64 or float32.

    Raises
    ------
    ValueError
        An option that makes no sense, more ranks than strips, or more strips than rows.
    """

    folder: str = field(init=False, default="")
    strips: Strips = Strips()
    network: Network = Network(hidden=64, dropout=0.0, decay=0.0)
    dtype: Literal["float64", "float32"] = "float32"

    def identity(self) -> str:
        """Return nothing: the data are made from the options."""
        return ""

    @cached_property
    def shard(self) -> Shard:
        """The strips of this rank."""
        columns = self.strips.columns or round(math.sqrt(self.strips.nodes))
        return strip(
            math.ceil(self.strips.nodes / columns),
            columns,
            self.strips.degree,
            rank=self.comm.rank,
            ranks=self.comm.ranks,
            parts=self.strips.parts,
            features=self.strips.features,
            classes=self.strips.classes,
            seed=self.seed,
        )


def strip(
    rows: int,
    columns: int,
    neighbours: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    parts: int = 0,
    features: int = 64,
    classes: int = 8,
    seed: int = 0,
) -> Shard:
    """Make the shard of one rank.

    Parameters
    ----------
    rows, columns, neighbours : int
        Of the whole grid, as in `mldd.problems.data.meshes.grid_mesh`.
    rank, ranks : int
        Which rank of how many.
    parts : int
        Number of strips, whose numbers of rows differ by one at most; 0: one per rank.
    features, classes : int
        Features of a node, labels.
    seed : int
        Of features, masks and teacher.

    Returns
    -------
    Shard
        Features in single precision.

    Raises
    ------
    ValueError
        If there are more ranks than strips, more strips than rows, or a number makes no sense.
    """
    if not 0 <= rank < ranks <= rows:
        raise ValueError(f"a grid of {rows} rows can be cut into 1..{rows} strips, got rank {rank} of {ranks}")
    if features < 1 or classes < 2 or seed < 0:
        raise ValueError(f"`features` >= 1, `classes` >= 2, `seed` >= 0 are needed, got {features}, {classes}, {seed}")
    parts = parts or ranks
    if not ranks <= parts <= rows:
        raise ValueError(f"`parts` must be in {ranks}..{rows} for {ranks} ranks and {rows} rows, got {parts}")
    cuts, mine = np.arange(parts + 1) * rows // parts * columns, shares(parts, ranks)
    ends = cuts[[0, *(group.stop for group in mine)]]
    start, stop = int(ends[rank]), int(ends[rank + 1])
    indptr, near = grid_rows(rows, columns, neighbours, start // columns, stop // columns)
    low, high = min(int(near.min(initial=start)), start), max(int(near.max(initial=stop - 1)) + 1, stop)
    halo = np.concatenate([np.arange(low, start), np.arange(stop, high)])  # whole rows: all their nodes are read
    u = _uniform(seed, _FEATURES, start, stop - start, features)
    teacher = _teacher(seed, features, classes)
    outer = [_uniform(seed, _FEATURES, a, b - a, features) for a, b in ((low, start), (stop, high))]
    scores = np.concatenate([_scores(piece, teacher) for piece in (outer[0], u, outer[1])])
    owner = np.searchsorted(ends, halo, side="right") - 1
    draw = _uniform(seed, _MASKS, start, stop - start, 1)[:, 0]
    u -= np.float32(0.5)
    u *= np.float32(np.sqrt(12.0))
    carried = NodeData(
        features=u,
        labels=_best(indptr, near - low, scores, start - low),
        train=draw < _TRAIN,
        validation=(draw >= _TRAIN) & (draw < _TRAIN + _VALIDATION),
        test=draw >= _TRAIN + _VALIDATION,
    )
    return Shard(
        CutGraph(f"grid {rows} x {columns}", classes, "accuracy", np.diff(cuts)),
        numbers=np.arange(start, stop),
        part=np.repeat(mine[rank], np.diff(cuts)[mine[rank].start : mine[rank].stop]),
        edges=ShardEdges(indptr, _renumbered(near, low, start, stop)),
        halo=HaloNodes(owner, halo - ends[owner]),
        data=carried,
    )


def _uniform(seed: int, stream: int, first: int, count: int, width: int) -> Singles:
    """Return rows first..first+count-1 of an endless matrix of numbers uniform in [0, 1), multiples of 2^-24."""
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    skipped, rest = divmod(first * width, _BLOCK)
    generator = np.random.Generator(bits.advance(skipped))
    generator.random(rest, dtype=np.float32)
    return generator.random((count, width), dtype=np.float32)


def _teacher(seed: int, features: int, classes: int) -> NDArray[np.float64]:
    """Return T, normal numbers rounded to multiples of 2^-10."""
    bits = np.random.Philox(key=np.array([seed, _TEACHER], dtype=np.uint64))
    return np.rint(1024 * np.random.Generator(bits).standard_normal((features, classes))) / 1024


def _scores(u: Singles, teacher: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return X T up to a factor, shape (n, classes)."""
    chunks = [(u[k : k + _CHUNK].astype(np.float64) - 0.5) @ teacher for k in range(0, len(u), _CHUNK)]
    return np.concatenate([np.empty((0, teacher.shape[1])), *chunks])


def _best(indptr: Ints, columns: Ints, scores: NDArray[np.float64], shift: int) -> Ints:
    """Return the class of the largest sum of scores over every node, the first at `shift`, and its neighbours."""
    labels = np.empty(len(indptr) - 1, dtype=np.int64)
    for k in range(0, len(labels), _CHUNK):
        ends = indptr[k : k + _CHUNK + 1]
        near = columns[ends[0] : ends[-1]]
        rows = sp.csr_matrix((np.ones(len(near)), near, ends - ends[0]), shape=(len(ends) - 1, len(scores)))
        own = scores[shift + k : shift + k + len(ends) - 1]
        labels[k : k + _CHUNK] = (rows @ scores + own).argmax(axis=1)
    return labels


def _renumbered(near: Ints, low: int, start: int, stop: int) -> Ints:
    """Turn numbers of the grid into those of the strip: own nodes first, then the halo before, then that behind."""
    own = stop - start
    places = near - start
    before, behind = near < start, near >= stop
    places[before] = near[before] - low + own
    places[behind] = near[behind] - low
    return places
