"""Stages of a pipeline: the layers of a network, a directed acyclic graph, cut into parts that depend one way only.

A part list is *acyclic* when no edge runs from a part to an earlier one; part p can then run on device p, one batch
after the other. The value of a node is sent once to every other part that reads it, so that a partition costs the
communication ::

    C(part) = sum_u sizes[u] |{part[v] : (u, v) an edge, part[v] != part[u]}|

Every order of the nodes that agrees with the edges turns the task into one of cutting a line, which two dynamic
programmes solve exactly: the least largest time T* of a part, then the least C among the cuts whose parts take
(1 + imbalance) T* at most. For a chain, which has one order, the result is optimal. For other graphs the best of a few
orders is taken, and single nodes are moved as long as C falls.

References
----------
Harlap et al. (PipeDream), arXiv:1806.03377 (dynamic programme); Herrmann et al. (dagP, acyclic
partitions of general graphs by levels), doi:10.1137/18M1176865, for a stronger method where graphs are far from chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph.graph import kind_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST = 8000  # nodes: the dynamic programmes hold a few square matrices
_ORDERS, _WORK = 32, 4_000_000  # number of orders tried, and of matrix entries over all of them


@dataclass(frozen=True, eq=False)
class LayerDag:
    """Layers (or operations) of a network and what flows between them.

    Parameters
    ----------
    edges : LongTensor, shape (2, E)
        From (row 0) and to (row 1); no cycles.
    times : Tensor, shape (n,)
        Time of every node, >= 0, in any unit.
    memories : Tensor, shape (n,), optional
        Memory that the node occupies on its device (parameters, kept values), >= 0; the default is nothing.
    sizes : Tensor, shape (n,), optional
        Size of the value that the node sends, >= 0; the default is 1.

    Raises
    ------
    ValueError
        For a cycle, an edge to a node that does not exist, or negative or missing numbers.
    """

    edges: Tensor
    times: Tensor
    memories: Tensor | None = None
    sizes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.times.dim() != 1 or not 1 <= self.nodes <= _LARGEST:
            raise ValueError(f"`times` must have shape (n,) with n in 1..{_LARGEST}, got {tuple(self.times.shape)}")
        for name in ("times", "memories", "sizes"):
            _check(name, getattr(self, name), self.nodes)
        if self.edges.dtype != torch.int64 or self.edges.dim() != 2 or self.edges.shape[0] != 2:
            raise ValueError(f"`edges` must be int64 of shape (2, E), got {kind_of(self.edges)}")
        if self.edges.numel() and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < self.nodes:
            raise ValueError(
                f"`edges` must hold nodes 0..{self.nodes - 1}, got {int(self.edges.min())}..{int(self.edges.max())}"
            )
        _ = self.orders

    @property
    def nodes(self) -> int:
        """Count the nodes."""
        return len(self.times)

    @cached_property
    def orders(self) -> list[Ints]:
        """Orders of the nodes in which every edge runs forward; more of them for small graphs, one for a chain."""
        random = np.random.default_rng(0)
        count = min(_ORDERS, 2 + _WORK // self.nodes**2)
        keys = [np.arange(self.nodes), -np.arange(self.nodes), *(random.random(self.nodes) for _ in range(count - 2))]
        found = [_sorted(self.edges.T.tolist(), key.tolist()) for key in keys]
        return list({order.tobytes(): order for order in found}.values())


def _check(name: str, values: Tensor | None, nodes: int) -> None:
    if values is None:
        return
    if values.shape != (nodes,) or not bool(torch.isfinite(values).all()) or float(values.min()) < 0:
        raise ValueError(
            f"`{name}` must be finite, >= 0 and of shape ({nodes},), got shape {tuple(values.shape)} "
            f"and a minimum of {float(values.min()) if values.numel() else 'nothing'}"
        )


def _sorted(edges: list[list[int]], keys: list[float]) -> Ints:
    """Sort the nodes so that every edge runs forward, taking the one of least key whenever there is a choice."""
    sorter: TopologicalSorter[int] = TopologicalSorter({node: () for node in range(len(keys))})
    for source, target in edges:
        sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(map(str, error.args[1]))
        raise ValueError(f"`edges` must have no cycle, got {cycle}: cut it, or merge its nodes into one") from None
    order, ready = [], [(keys[node], node) for node in sorter.get_ready()]
    heapify(ready)
    while ready:
        order.append(heappop(ready)[1])
        sorter.done(order[-1])
        for node in sorter.get_ready():
            heappush(ready, (keys[node], node))
    return np.array(order, dtype=np.int64)


def partition_layers(dag: LayerDag, parts: int, *, capacity: float | None = None, imbalance: float = 0.05) -> Tensor:
    """Cut a network into consecutive stages of balanced time, bounded memory and little communication.

    Parameters
    ----------
    dag : LayerDag
        With n nodes.
    parts : int
        Number of stages, none of them empty.
    capacity : float, optional
        Largest sum of `memories` of a part.
    imbalance : float
        Parts may take (1 + imbalance) times the least largest time that was found, so that less is sent.

    Returns
    -------
    LongTensor, shape (n,)
        The part of every node; edges never lead to a smaller number.

    Raises
    ------
    ValueError
        If there are fewer nodes than parts, or no cut keeps below `capacity`.

    Examples
    --------
    A chain of four layers, of which the third is slow and the second sends little:

    >>> chain = LayerDag(torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.tensor([1.0, 1.0, 2.0, 0.0]))
    >>> partition_layers(chain, 2).tolist()
    [0, 0, 1, 1]
    """
    _check_request(dag, parts, capacity, imbalance)
    problems = [_Line.of(dag, order, capacity) for order in dag.orders]
    cuts = [problem.balanced(parts) for problem in problems]
    least = min((largest for largest, _ in cuts), default=np.inf)
    if not np.isfinite(least):
        raise ValueError(
            f"no cut into {parts} parts was found whose memories are at most `capacity` = {capacity:g}: "
            "use more parts or a larger capacity"
        )
    limit = (1 + imbalance) * least * (1 + 1e-12)
    found = [problem.cheapest(parts, limit) for problem in problems]
    labels = [_refined(dag, label, limit, capacity) for label in found if label is not None]
    costs = [_communication(dag, label) for label in labels]
    return torch.from_numpy(labels[int(np.argmin(costs))])


def _check_request(dag: LayerDag, parts: int, capacity: float | None, imbalance: float) -> None:
    if not 1 <= parts <= dag.nodes:
        raise ValueError(f"`parts` must be in 1..{dag.nodes} (the number of nodes), got {parts}")
    if not imbalance >= 0:
        raise ValueError(f"`imbalance` must be >= 0, got {imbalance}")
    if capacity is not None and dag.memories is not None and float(dag.memories.max()) > capacity:
        raise ValueError(
            f"`capacity` must hold the largest node, which needs {float(dag.memories.max()):g}, got {capacity:g}"
        )


def describe(dag: LayerDag, part: Tensor) -> dict[str, Any]:
    """Return times, memories and node counts of the parts, balance, communication, and whether the parts are acyclic.

    `balance` is the largest time over the mean; `communication` is C of the module's formula.

    Parameters
    ----------
    dag : LayerDag
        Operations and their values.
    part : LongTensor, shape (n,)
        The part of every operation.

    Raises
    ------
    ValueError
        Numbers that are no parts of these nodes.
    """
    if part.dtype != torch.int64 or part.shape != (dag.nodes,) or int(part.min()) < 0:
        raise ValueError(f"`part` must be int64 >= 0 of shape ({dag.nodes},), got {kind_of(part)}")
    label = part.numpy()
    times = np.bincount(label, _array(dag.times, dag, 0.0))
    return {
        "parts": len(times),
        "nodes": np.bincount(label).tolist(),
        "times": times.tolist(),
        "memories": np.bincount(label, _array(dag.memories, dag, 0.0)).tolist(),
        "balance": float(times.max() * len(times) / times.sum()) if times.sum() > 0 else 1.0,
        "communication": _communication(dag, label),
        "acyclic": bool((label[dag.edges[0].numpy()] <= label[dag.edges[1].numpy()]).all()),
    }


def _array(values: Tensor | None, dag: LayerDag, default: float) -> Floats:
    if values is None:
        return np.full(dag.nodes, default)
    return np.asarray(values.double().numpy())


def _communication(dag: LayerDag, label: Ints) -> float:
    """Evaluate C: every value once for every foreign part that reads it."""
    source, target = dag.edges.numpy()
    parts = int(label.max()) + 1
    crossing = label[source] != label[target]
    pairs = np.unique(source[crossing] * parts + label[target[crossing]])
    return float(_array(dag.sizes, dag, 1.0)[pairs // parts].sum())


@dataclass(frozen=True, eq=False)
class _Line:
    """The nodes in one order; entry (i, j) of every matrix belongs to a part of the nodes at places i..j-1.

    `time` is its time, `reads` the size of what it reads from places before i, `allowed` tells whether it may be one.
    """

    order: Ints
    time: Floats
    reads: Floats
    allowed: NDArray[np.bool_]

    @staticmethod
    def of(dag: LayerDag, order: Ints, capacity: float | None) -> _Line:
        allowed = np.triu(np.ones((dag.nodes + 1, dag.nodes + 1), dtype=bool), 1)
        if capacity is not None:
            allowed &= _interval_sums(_array(dag.memories, dag, 0.0)[order]) <= capacity * (1 + 1e-12)
        return _Line(order, _interval_sums(_array(dag.times, dag, 0.0)[order]), _reads(dag, order), allowed)

    def balanced(self, parts: int) -> tuple[float, Ints]:
        """Return the least largest time of a part, and the ends of the parts."""
        return _cut(self.time, self.allowed, parts, np.maximum)

    def cheapest(self, parts: int, limit: float) -> Ints | None:
        """Return the part of every node for the least sum of reads with times <= `limit`, if there is one."""
        cost, ends = _cut(self.reads, self.allowed & (self.time <= limit), parts, np.add)
        if not np.isfinite(cost):
            return None
        label = np.empty(len(self.order), dtype=np.int64)
        label[self.order] = np.searchsorted(ends, np.arange(len(self.order)), side="right")
        return label


def _interval_sums(values: Floats) -> Floats:
    """Return S[i, j] = values[i] + ... + values[j - 1]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[None, :] - total[:, None])


def _reads(dag: LayerDag, order: Ints) -> Floats:
    """Return the matrix of sizes that a part of the places i..j-1 reads from before, every value once.

    The reader at place b of a value made at place a, whose reader before is at p (p = a for the first), adds its size
    to all parts with p < i <= b < j, a rectangle: sums of its corner differences.
    """
    place = np.empty(dag.nodes, dtype=np.int64)
    place[order] = np.arange(dag.nodes)
    made, read = place[dag.edges.numpy()]
    made, read = np.divmod(np.unique(made * dag.nodes + read), dag.nodes)
    before = np.where(np.diff(made, prepend=-1) == 0, np.roll(read, 1), made)
    size = _array(dag.sizes, dag, 1.0)[order][made]
    corners = np.zeros((dag.nodes + 2, dag.nodes + 1))
    np.add.at(corners, (before + 1, read + 1), size)
    np.add.at(corners, (read + 1, read + 1), -size)
    return np.asarray(np.cumsum(np.cumsum(corners, axis=0), axis=1)[:-1])


def _cut(
    cost: Floats, allowed: NDArray[np.bool_], parts: int, join: Callable[[Floats, Floats], Floats]
) -> tuple[float, Ints]:
    """Cut a line into parts: best[k, j] = min_i join(best[k - 1, i], cost[i, j]) over allowed parts i..j-1.

    Returns the least total cost (infinite where there is no cut), and the end of every part but the last.
    """
    cost = np.where(allowed, cost, np.inf)
    best = np.full(len(cost), np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(parts):
        table = join(best[:, None], cost)
        choices.append(table.argmin(axis=0))
        best = table[choices[-1], np.arange(len(cost))]
    ends = [len(cost) - 1]
    for choice in reversed(choices[1:]):
        ends.append(int(choice[ends[-1]]))
    return float(best[-1]), np.array(ends[:0:-1], dtype=np.int64)


def _refined(dag: LayerDag, label: Ints, limit: float, capacity: float | None) -> Ints:
    """Move single nodes to other parts, the most useful first, while the communication falls.

    A node may move to part q where no edge turns back, max(part of predecessors) <= q <= min(part of successors), the
    time stays below `limit`, the memory below `capacity`, and no part comes out empty.
    """
    label, parts = label.copy(), int(label.max()) + 1
    times, memories = _array(dag.times, dag, 0.0), _array(dag.memories, dag, 0.0)
    room = np.inf if capacity is None else capacity
    rounding = 1e-12 * float(_array(dag.sizes, dag, 1.0).sum())
    while True:
        fits = np.bincount(label, times, parts) + times[:, None] <= limit
        fits &= np.bincount(label, memories, parts) + memories[:, None] <= room
        fits &= _stays_acyclic(dag, label, parts) & (np.bincount(label)[label] > 1)[:, None]
        gain = np.where(fits, _gains(dag, label, parts), 0.0)
        node, part = np.unravel_index(gain.argmax(), gain.shape)
        if gain[node, part] <= rounding:
            return label
        label[node] = part


def _stays_acyclic(dag: LayerDag, label: Ints, parts: int) -> NDArray[np.bool_]:
    """Return for every node and part whether the node may move there, shape (n, parts)."""
    source, target = dag.edges.numpy()
    low, high = np.zeros(dag.nodes, dtype=np.int64), np.full(dag.nodes, parts - 1)
    np.maximum.at(low, target, label[source])
    np.minimum.at(high, source, label[target])
    to = np.arange(parts)
    return np.asarray((low[:, None] <= to) & (to <= high[:, None]))


def _gains(dag: LayerDag, label: Ints, parts: int) -> Floats:
    """Return by how much the communication falls when a node moves to a part, shape (n, parts)."""
    source, target = np.unique(dag.edges.numpy(), axis=1)
    size = _array(dag.sizes, dag, 1.0)
    readers = np.zeros((dag.nodes, parts))
    np.add.at(readers, (source, label[target]), 1)
    home = np.arange(parts) == label[:, None]
    # what the node itself sends: to all parts that read it but its own
    sends = -size[:, None] * (readers > 0)
    # what it reads: sent to its part on its behalf alone, unless it is made there
    others = readers[source] - home[target]
    alone = np.zeros((dag.nodes, parts))
    np.add.at(alone, target, size[source][:, None] * ((others == 0) & ~home[source]))
    cost = sends + alone
    return np.asarray(cost[home][:, None] - cost)
