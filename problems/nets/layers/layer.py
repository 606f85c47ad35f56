"""What a kind of graph layer declares, and the table of the kinds there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import loaded, registered
from mldd.graph import Graph
from mldd.problems.nets import Sparse
from mldd.problems.nets.layers.products import linear, propagated, shifted

if TYPE_CHECKING:
    from mldd.problems.nets import Batch

Floats = NDArray[np.float64]
Act = Callable[[Tensor], Tensor]
Own = TypeVar("Own")
Moved = TypeVar("Moved")


@dataclass(frozen=True)
class Layer:
    """One kind of layer: its parameters, its operator, what may be done with it, and the function itself.

    Whole graphs, shards, composite graphs, coarse networks and hand-written sweeps ask the layer; nothing else knows
    which kinds there are. A new kind is a subclass in a file of its own. A layer has one or more *terms*, inputs with a
    weight each, and one operator A, a sparse matrix made from the graph, that is applied to terms which propagate. On
    a composite graph, whose nodes stand for several, A is ``mean A T``: entries that lead to one composite node are
    added, rows are averaged.

    Attributes
    ----------
    terms : tuple of bool
        Whether each term is propagated by A; a term that is not sees the own node.
    beforehand : bool
        Whether A may be applied to the features once and for all: the layer is linear in A X.
    self_loops : bool
        Whether the pattern of A has the diagonal.
    weightable : bool
        Whether A may be made of weighted edges.
    many_heads : bool
        Whether there may be more than one head.
    swept : bool
        Whether the layer is the plain sum of its terms and a bias, for which there are hand-written sweeps.
    inputs : tuple of str
        Tensors with one row per unit of the state that comes in; in the first layer they have weight decay.
    scores : tuple of str
        Tensors whose columns (vectors: entries) are multiplied with the units of a head and summed to a score.
    edge_inputs : tuple of str
        Tensors with one row per attribute of an edge; a layer without any takes no edge attributes.
    passing : str
        The tensor that, as identity with all others zero, lets a non-negative state pass; empty if there is none.
    inner : tuple of str
        Tensors that stay as they are where a network is to start with outputs zero.
    """

    terms: ClassVar[tuple[bool, ...]] = (True,)
    beforehand: ClassVar[bool] = True
    self_loops: ClassVar[bool] = False
    weightable: ClassVar[bool] = False
    many_heads: ClassVar[bool] = False
    swept: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("weight",)
    scores: ClassVar[tuple[str, ...]] = ()
    edge_inputs: ClassVar[tuple[str, ...]] = ()
    passing: ClassVar[str] = ""
    inner: ClassVar[tuple[str, ...]] = ()

    def tensors(
        self, inner: int, outer: int, heads: int = 1, last: bool = False, attributes: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the parameters, the weights that take in the state first, by default with a bias.

        Parameters
        ----------
        inner, outer : int
            Widths of the states before and behind the layer.
        heads : int
            Heads have ``outer / heads`` columns each, that are concatenated.
        last : bool
            In the last layer heads have `outer` columns each, that are averaged.
        attributes : int
            Numbers that every edge has; `edge_inputs` have as many rows, and are left out where there are none.
        """
        return {name: (inner, outer) for name in self.inputs} | {"bias": (outer,)}

    def score_factor(self, width: int) -> float:
        """Return what sums over the units of a head of this width are multiplied with to give a score.

        Parameters
        ----------
        width : int
            Units of a head.
        """
        return 1.0

    def values(self, pattern: Any, rows: Floats, columns: Floats) -> Any:
        """Return the entries of A between nodes of these degrees, for a whole graph or for the rows of a shard.

        Parameters
        ----------
        pattern : csr_matrix, shape (m, n)
            Ones or weights of edges; ones on the diagonal where the layer has self loops.
        rows, columns : ndarray, shapes (m,) and (n,)
            Degrees (sums of weights) of the nodes, self loops not counted.
        """
        return sp.csr_matrix(pattern)

    def operator(self, graph: Graph, weighted: bool = False) -> Any:
        """Return A for a whole graph, csr_matrix of shape (n, n).

        Parameters
        ----------
        graph : Graph
            The whole graph.
        weighted : bool
            Whether edges have their weights, or all of them weight one.
        """
        adjacency = graph.scipy(weighted=weighted)
        degrees = np.asarray(adjacency.sum(1), dtype=np.float64).ravel()
        return self.values(self.looped(adjacency), degrees, degrees)

    def attributes(self, graph: Graph) -> tuple[Any, ...]:
        """Return the edge attributes that the layer takes, one csr_matrix of shape (n, n) each.

        Parameters
        ----------
        graph : Graph
            Its adjacency is the pattern of the matrices.
        """
        if not self.edge_inputs or graph.edge_attributes is None:
            return ()
        pattern, shape = (graph.indices.numpy(), graph.indptr.numpy()), (graph.nodes, graph.nodes)
        return tuple(sp.csr_matrix((e, *pattern), shape=shape) for e in graph.edge_attributes.T.numpy().copy())

    def unused(self, weights: bool, attributes: bool) -> tuple[str, ...]:
        """Return the names of what a graph has and the layer takes no notice of.

        Parameters
        ----------
        weights, attributes : bool
            Whether the edges of the graph have them.
        """
        lost = {"edge_weight": weights and not self.weightable, "edge_attr": attributes and not self.edge_inputs}
        return tuple(name for name, is_lost in lost.items() if is_lost)

    def looped(self, adjacency: Any) -> Any:
        """Return the rows of the adjacency matrix, with ones on the diagonal where the layer has self loops.

        Parameters
        ----------
        adjacency : csr_matrix, shape (m, n)
            The nodes of its rows are the first of its columns.
        """
        if not self.self_loops:
            return adjacency
        return sp.csr_matrix(adjacency + sp.eye(*adjacency.shape, format="csr"))

    def on_terms(self, own: Own, moved: Moved) -> tuple[Own | Moved, ...]:
        """Return what belongs to every term: `moved` where it is propagated, else `own`.

        Parameters
        ----------
        own, moved : any
            None and A for the operators of a layer; X and A X for the inputs of the first one.
        """
        return tuple(moved if moves else own for moves in self.terms)

    def __call__(
        self,
        batch: Batch,
        layer: int,
        states: Sequence[Tensor | Sparse],
        weights: Sequence[Tensor],
        act: Act,
        heads: int,
    ) -> Tensor:
        """Return the new state, before the activation; by default ``sum_t B_t H W_t + b``.

        Parameters
        ----------
        batch : Batch
            Its operators of this layer are A, or None: the identity, or A applied beforehand.
        layer : int
            Number of the layer.
        states : sequence of Tensor or Sparse
            One state per term.
        weights : sequence of Tensor
            In the order of `tensors`; with a leading axis p for a batch of p graphs.
        act : callable
            Activation of the network, for layers with a network inside.
        heads : int
        """
        return summed(batch, layer, states, weights)


def summed(batch: Batch, layer: int, states: Sequence[Tensor | Sparse], weights: Sequence[Tensor]) -> Tensor:
    """Return ``sum_t B_t H W_t + b``.

    Parameters
    ----------
    batch : Batch
        Graphs, features and targets.
    layer : int
        Number of the layer.
    states : sequence of Tensor or Sparse
        One per term.
    weights : sequence of Tensor
        One per term, and the bias.
    """
    *weights, bias = weights
    out: Tensor | None = None
    for operator, state, weight in zip(batch.operators[layer], states, weights, strict=True):
        if operator is not None:
            z = propagated(operator, state, weight, layer == 0)
        elif isinstance(state, Sparse):
            z = batch.first(linear(state, weight), batch.rows[layer + 1])
        else:
            z = linear(batch.first(state, batch.rows[layer + 1]), weight)
        out = z if out is None else out + z
    assert out is not None
    return shifted(out, bias)


@cache
def _table() -> dict[str, str]:
    """Names and classes of all kinds of layers, those of other packages included."""
    return registered("mldd.problems.nets.layers")


def layer_kinds() -> list[str]:
    """Return the names of all kinds of layers."""
    return list(_table())


def check_kind(kind: str, field: str = "kind", others: Sequence[str] = ()) -> None:
    """Refuse what is neither the name of a kind nor one from outside.

    Parameters
    ----------
    kind : str
        What was given.
    field : str
        Name of the field that it was given for.
    others : sequence of str
        Further values of the field that are no kinds.

    Raises
    ------
    ValueError
        An unknown name.
    """
    known = [*_table(), *others]
    if kind not in known and ":" not in kind:
        raise ValueError(f"`{field}` must be one of {', '.join(known)}, or file.py:Class, got {kind!r}")


@cache
def layer_of(kind: str) -> Layer:
    """Return the layer of a kind.

    Parameters
    ----------
    kind : str
        A name of `layer_kinds`, or ``file.py:Class`` or ``package.module:Class``.

    Raises
    ------
    ValueError
        There is none.
    """
    check_kind(kind)
    made = loaded(_table().get(kind, kind), "class")()
    if not isinstance(made, Layer):
        raise ValueError(f"{kind} must be a subclass of mldd.problems.nets.layers.Layer, got {type(made).__name__}")
    return made
