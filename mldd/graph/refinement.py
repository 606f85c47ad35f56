"""Moves of nodes between parts: to balance several weights at once, to lower halo rows, to cut weaker edges.

Nodes move in rounds, many at a time and without a loop over them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.graph.cut import heaviest
from mldd.graph.graph import Graph, neighbourhoods

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ROUNDS = 200
_TIRED, _LITTLE = 6, 1e-3  # refinement ends after so many rounds that together gain less than this


class Moves(NamedTuple):
    """Candidates: node, the part it would go to, and what that gains.

    Parameters
    ----------
    node : ndarray, shape (k,)
        Nodes.
    to : ndarray, shape (k,)
        The part that each would go to.
    gain : ndarray, shape (k,)
        What that lowers the objective by.
    """

    node: Ints
    to: Ints
    gain: Floats

    def at(self, chosen: Any) -> Moves:
        """Return some of the candidates.

        Parameters
        ----------
        chosen : mask or ndarray of int
            Which ones.
        """
        return Moves(self.node[chosen], self.to[chosen], self.gain[chosen])


def balanced(graph: Graph, part: Ints, parts: int, weights: Floats, imbalance: float) -> Ints:
    """Return a partition after nodes have left parts that are too heavy, every weight of every part within `heaviest`.

    Greedy: in each round the moves go first that lose the least edge weight per excess they take away; nodes go to
    neighbouring parts, elsewhere only where none of these has room. A move never adds to the excess of its two parts,
    so the sum of the excesses falls; it may stay above zero where weights contradict each other.

    Parameters
    ----------
    graph : Graph
        Its weights are lost where edges are cut.
    part : array, shape (n,)
        The part of every node; it is not changed.
    parts : int
        Number of parts.
    weights : array, shape (n, c)
        c weights of every node, each to be balanced.
    imbalance : float
        Share by which a part may exceed the mean, see `heaviest`.

    Returns
    -------
    array, shape (n,)
    """
    part, matrix = part.copy(), graph.scipy()
    unit = np.maximum(weights.sum(axis=0) / parts, np.finfo(float).tiny)
    weights = weights / unit  # all means are 1
    allowed = heaviest(weights, parts, imbalance)
    for _ in range(_ROUNDS):
        loads = _loads(part, parts, weights)
        if not (loads > allowed).any():
            break
        moves = _relief(matrix, part, loads, weights, allowed, near=True)
        if len(moves.node) == 0:
            moves = _relief(matrix, part, loads, weights, allowed, near=False)
        if len(moves.node) == 0:
            break
        new = part.copy()
        few = moves.at(_needed(moves, part, loads, weights, allowed))
        new[few.node] = few.to
        if _excess(_loads(new, parts, weights), allowed).sum() >= _excess(loads, allowed).sum():
            new = part.copy()
            new[moves.node[0]] = moves.to[0]  # one move alone takes away what it promises
        part = new
    return part


def _loads(part: Ints, parts: int, weights: Floats) -> Floats:
    """Add up the weights of every part, shape (parts, c)."""
    columns = [np.bincount(part, weights=column, minlength=parts) for column in weights.T]
    return np.stack(columns, axis=1)


def _excess(loads: Floats, allowed: Floats) -> Floats:
    """Return by how much loads exceed what is allowed, summed over the kinds of weight."""
    return np.asarray(np.maximum(loads - allowed, 0).sum(axis=-1), dtype=np.float64)


def _relief(matrix: Any, part: Ints, loads: Floats, weights: Floats, allowed: Floats, *, near: bool) -> Moves:
    """Return one move for every node that can lower the excess, the cheapest first."""
    over = loads > allowed
    node = np.flatnonzero((over[part] & (weights > 0)).any(axis=1))
    pull = _pull(matrix[node], part, len(loads))
    if near:
        entries = pull.tocoo()
        row, to, gained = entries.row, entries.col, entries.data
    else:  # to the part that is the emptiest in one of the weights
        targets = np.unique(loads.argmin(axis=0))
        row, to = np.repeat(np.arange(len(node)), len(targets)), np.tile(targets, len(node))
        gained = np.zeros(len(row))
    home = part[node]
    loss = np.asarray(pull[np.arange(len(node)), home]).ravel()[row] - gained
    own, weight = home[row], weights[node[row]]
    before = _excess(loads[own], allowed) + _excess(loads[to], allowed)
    after = _excess(loads[own] - weight, allowed) + _excess(loads[to] + weight, allowed)
    relief = before - after
    good = (relief > 1e-12) & (own != to)
    row, to, loss, relief = row[good], to[good], loss[good], relief[good]
    cost = np.where(loss > 0, loss / relief, loss * relief)
    order = np.lexsort((to, node[row], cost))
    first = order[np.sort(np.unique(row[order], return_index=True)[1])]
    return Moves(node[row[first]], to[first].astype(np.int64), -loss[first])


def _needed(moves: Moves, part: Ints, loads: Floats, weights: Floats, allowed: Floats) -> Mask:
    """Choose as many of the sorted moves as parts have to give away, and as the others have room for."""
    weight, home = weights[moves.node], part[moves.node]
    given = _running(home, weight) - weight
    still: Mask = np.any((given < (loads - allowed)[home]) & (weight > 0), axis=1)
    room = np.where(loads > allowed, np.inf, allowed - loads)[moves.to]  # what is added to an excess is in the cost
    taken = _running(moves.to, weight * still[:, None])
    fits: Mask = np.all(taken <= room, axis=1)
    first: Mask = np.zeros(len(still), dtype=np.bool_)
    first[np.unique(np.where(still, moves.to, -1), return_index=True)[1]] = True
    return np.asarray(still & (fits | first), dtype=np.bool_)


def _running(group: Ints, weight: Floats) -> Floats:
    """Return the cumulated weights within each group, in the order given, shape (m, c)."""
    order = np.argsort(group, kind="stable")
    running = np.cumsum(weight[order], axis=0)
    begin = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = running[begin] - weight[order[begin]]
    running -= np.repeat(before, np.diff(begin, append=len(group)), axis=0)
    result = np.empty_like(running)
    result[order] = running
    return result


def _pull(rows: Any, part: Ints, parts: int) -> sp.csr_matrix:
    """Return the edge weight between nodes (rows of the adjacency) and parts."""
    return (rows @ _membership(part, parts)).tocsr()


def _membership(part: Ints, parts: int) -> sp.csr_matrix:
    n = len(part)
    return sp.csr_matrix((np.ones(n), part, np.arange(n + 1)), shape=(n, parts))


# ------------------------------------------------------------------------------------------------ refinement


def refined(
    graph: Graph,
    part: Ints,
    parts: int,
    weights: Floats,
    imbalance: float,
    objective: Literal["halo", "cut"] = "halo",
    seed: int = 0,
) -> Ints:
    """Return a partition after moves of nodes at boundaries that lower the halo rows, or the weight of the cut.

    Each round tries all moves that go one way (to parts of higher or of lower number); where these get in each other's
    way, it makes those alone whose nodes share no net (`halo`: more than two edges apart) or edge (`cut`), for their
    gains add up. So the objective never grows. Moves without a gain are made where they even out the parts. No part is
    emptied, and none that is within `heaviest` leaves it.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    part : array, shape (n,)
        The part of every node; it is not changed.
    parts : int
        Number of parts.
    weights : array, shape (n, c)
        To be balanced.
    imbalance : float
        Share by which a part may exceed the mean, see `heaviest`.
    objective : {"halo", "cut"}
        Halo rows, or weight of the edges cut.
    seed : int
        Of the order among equals.

    Returns
    -------
    array, shape (n,)

    References
    ----------
    Fiduccia and Mattheyses, doi:10.1109/DAC.1982.1585498, for the gains of one move; without their hill climbing.
    """
    rng, allowed = np.random.default_rng(seed), heaviest(weights, parts, imbalance)
    nets = neighbourhoods(graph)
    halo = objective == "halo"
    matrix = nets if halo else graph.scipy()
    candidates, cost = (_halo_moves, _halo_rows) if halo else (_cut_moves, _cut_weight)
    now = cost(matrix, part, parts)
    past = [now]
    for number in range(_ROUNDS):
        loads, sizes = _loads(part, parts, weights), np.bincount(part, minlength=parts)
        moves = candidates(matrix, part, parts)
        moves = moves.at(_allowed(moves, part, loads, sizes, weights, allowed))
        moves = moves.at(_best_of_node(moves, rng))
        if len(moves.node) == 0:
            break
        # Neighbours that move in opposite directions undo each other's gains: one direction at a time, if that pays.
        upward = (moves.to > part[moves.node]) == (number % 2 == 0)
        trial = _moved(part, moves.at(upward), loads, sizes, weights, allowed)
        then = cost(matrix, trial, parts)
        if then >= now:
            trial = _moved(part, moves.at(_apart(nets, moves, 2 if halo else 1, rng)), loads, sizes, weights, allowed)
            then = cost(matrix, trial, parts)
        part, now = trial, then
        past.append(now)
        if len(past) > _TIRED and past[-1 - _TIRED] - now <= _LITTLE * abs(now):
            break
    return part


def _moved(part: Ints, moves: Moves, loads: Floats, sizes: Ints, weights: Floats, allowed: Floats) -> Ints:
    few = moves.at(_fitting(moves, part, loads, sizes, weights, allowed))
    part = part.copy()
    part[few.node] = few.to
    return part


def _halo_rows(nets: sp.csr_matrix, part: Ints, parts: int) -> float:
    """Sum up in how many parts more than one each net lies."""
    return float((nets @ _membership(part, parts)).nnz - len(part))


def _cut_weight(matrix: Any, part: Ints, parts: int) -> float:
    """Return the weight of the cut, both directions."""
    row = np.repeat(np.arange(len(part)), np.diff(matrix.indptr))
    return float(matrix.data[part[row] != part[matrix.indices]].sum())


def _boundary(matrix: Any, part: Ints) -> Ints:
    """Return the nodes with a neighbour in another part."""
    row = np.repeat(np.arange(len(part)), np.diff(matrix.indptr))
    return _union(row[part[row] != part[matrix.indices]], len(part))


def _union(nodes: Ints, size: int) -> Ints:
    """Return the different ones among `nodes`, ascending."""
    there = np.zeros(size, dtype=bool)
    there[nodes] = True
    return np.flatnonzero(there)


def _cut_moves(matrix: Any, part: Ints, parts: int) -> Moves:
    node = _boundary(matrix, part)
    pull = _pull(matrix[node], part, parts)
    home = np.asarray(pull[np.arange(len(node)), part[node]]).ravel()
    entries = pull.tocoo()
    moves = Moves(node[entries.row], entries.col.astype(np.int64), entries.data - home[entries.row])
    return moves.at(moves.to != part[moves.node])


def _halo_moves(nets: sp.csr_matrix, part: Ints, parts: int) -> Moves:
    """Return what it gains to move v from p to q: nets of v whose only node in p is v, less those without one in q."""
    node = _boundary(nets, part)
    of_node = nets[node]
    near = _union(of_node.indices, len(part))
    count = _pull(nets[near], part, parts)  # nodes of each net in each part
    where = np.zeros(len(part), dtype=np.int64)
    where[near] = np.arange(len(near))
    pieces = (of_node.data, where[of_node.indices], of_node.indptr)
    of_node = sp.csr_matrix(pieces, shape=(len(node), len(near)))
    single, touched = count.copy(), count.copy()
    single.data = (count.data == 1).astype(np.float64)
    touched.data = np.ones_like(count.data)
    lost = np.asarray((of_node @ single).tocsr()[np.arange(len(node)), part[node]]).ravel()
    entries = (of_node @ touched).tocoo()
    gained = lost[entries.row] - (np.diff(of_node.indptr)[entries.row] - entries.data)
    moves = Moves(node[entries.row], entries.col.astype(np.int64), gained)
    return moves.at(moves.to != part[moves.node])


def _allowed(moves: Moves, part: Ints, loads: Floats, sizes: Ints, weights: Floats, allowed: Floats) -> Mask:
    """Say which moves gain, or even out the parts at no cost, and find room."""
    home, weight = part[moves.node], weights[moves.node]
    room = (loads[moves.to] + weight <= allowed).all(axis=1)
    evens = ((loads[home] - loads[moves.to] - weight).max(axis=1) > 0) & (
        (loads[home] - loads[moves.to] - weight) >= -1e-12
    ).all(axis=1)
    return np.asarray(room & (sizes[home] > 1) & ((moves.gain > 0) | ((moves.gain == 0) & evens)), dtype=bool)


def _best_of_node(moves: Moves, rng: np.random.Generator) -> Ints:
    """Return the index of the best move of every node, ties at random."""
    order = np.lexsort((rng.random(len(moves.node)), -moves.gain, moves.node))
    return order[np.flatnonzero(np.diff(moves.node[order], prepend=-1))]


def _apart(nets: sp.csr_matrix, moves: Moves, hops: int, rng: np.random.Generator) -> Mask:
    """Choose the moves that are the best within `hops` edges: no two of their nodes are that near."""
    node, rank = moves.node, np.zeros(nets.shape[0])
    rank[node[np.lexsort((rng.random(len(node)), moves.gain))]] = np.arange(1, len(node) + 1)
    best = rank
    for _ in range(hops):
        best = np.maximum.reduceat(best[nets.indices], nets.indptr[:-1])
    return np.asarray(best[node] == rank[node], dtype=bool)


def _fitting(moves: Moves, part: Ints, loads: Floats, sizes: Ints, weights: Floats, allowed: Floats) -> Ints:
    """Keep the moves that fit together: what comes in stays within bounds, and every part keeps a node."""
    order = np.argsort(-moves.gain, kind="stable")
    sorted_moves = moves.at(order)
    incoming = _running(sorted_moves.to, weights[sorted_moves.node])
    fits = (loads[sorted_moves.to] + incoming <= allowed).all(axis=1)
    home = part[sorted_moves.node]
    leaving = _running(home, np.ones((len(home), 1)))[:, 0]
    return order[fits & (leaving < sizes[home])]
