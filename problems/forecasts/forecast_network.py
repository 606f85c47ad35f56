"""Networks of forecasting problems and the local graphs that they are evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import FirstLayer, check_least
from mldd.graph import Graph, grow
from mldd.problems.data import HiddenMesh, graph_digest
from mldd.problems.nets import (
    EncodeProcessDecode,
    GraphNet,
    Ints,
    MeshSource,
    Piece,
    Source,
    first_of_graph,
    stack,
    stack_meshes,
)
from mldd.problems.nets.layers import check_kind
from mldd.ranks import Communicator

Floats = NDArray[np.float64]
# Activations, relu for the others. GIN's last layer has as few hidden units as outputs: a single ReLU is often dead.
_USUAL = {"epd": "silu", "gat": "elu", "gin": "elu"}


@dataclass(frozen=True)
class ForecastNetwork:
    """The network of a forecasting problem.

    Parameters
    ----------
    model : str
        Kind of layer (`mldd.problems.nets.layers`), or epd: an encode-process-decode network.
    hidden, layers : int
        Width and number of layers (of `epd`: rounds of message passing inside the mesh).
    mesh_nodes : int
        Nodes of the hidden mesh of `epd`; 0: a quarter of all nodes.
    mesh_graph : str
        A graph file of Anemoi whose hidden mesh and edges `epd` takes instead.
    activation : str
        Of the network; `auto` for what is usual.
    decay : float
        Weight decay.

    Raises
    ------
    ValueError
        Values out of range.
    """

    model: str = "sage"
    hidden: int = 32
    layers: int = 2
    mesh_nodes: int = 0
    mesh_graph: str = ""
    activation: str = "auto"
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_kind(self.model, "model", ("epd",))
        check_least(self, {"hidden": 1, "layers": 1, "mesh_nodes": 0})
        if self.mesh_graph and (self.model != "epd" or self.mesh_nodes):
            got = f"model={self.model}" if self.model != "epd" else f"mesh_nodes={self.mesh_nodes}"
            raise ValueError(
                f"`mesh_graph` is the mesh of model=epd without mesh_nodes, got {got}; leave one of them out"
            )
        if not 0 <= self.decay < np.inf:
            raise ValueError(f"`decay` must be >= 0 and finite, got {self.decay}")

    @cached_property
    def mesh_options(self) -> dict[str, Any]:
        """What is to be known of the hidden mesh, also where a trained network is used."""
        made: dict[str, Any] = {"mesh_nodes": self.mesh_nodes}
        if self.mesh_graph:
            made |= {"mesh_graph": self.mesh_graph, "mesh_digest": graph_digest(self.mesh_graph)}
        return made

    def made(self, inputs: int, outputs: int) -> Any:
        """Return the network.

        Parameters
        ----------
        inputs, outputs : int
            Per node.
        """
        act: Any = _USUAL.get(self.model, "relu") if self.activation == "auto" else self.activation
        if self.model == "epd":
            return EncodeProcessDecode(inputs, self.hidden, outputs, self.layers, act)
        return GraphNet(self.model, (inputs, *[self.hidden] * (self.layers - 1), outputs), activation=act)


def start(net: Any, seed: int) -> Tensor:
    """Return the network's start with the last layer zero, shape (N,): all outputs are zero.

    Of a last layer with two matrices (GIN) the first one stays: with both zero neither would ever learn.

    Parameters
    ----------
    net : GraphNet or EncodeProcessDecode
        The network.
    seed : int
        Of the other layers.
    """
    x: Tensor = net.initial(seed)
    if isinstance(net, GraphNet):
        named = net.tensors(net.layers - 1)
        for name, view in zip(named, net.layout.views(x)[-len(named) :], strict=True):
            if name not in net.layer.inner:
                view.zero_()
    return x


def first_layer(graphs: SampledGraphs, nodes: Ints, work: float, comm: Communicator) -> FirstLayer:
    """Return the inputs of the network's first layer at some nodes, a row per node and sample.

    Parameters
    ----------
    graphs : SampledGraphs
        The whole graph with its network and inputs.
    nodes : ndarray, shape (k,), int64
        Those of this rank.
    work : float
        Multiplications of a sweep forward over all data.
    comm : Communicator
        The ranks that share the nodes.

    Raises
    ------
    ValueError
        A network that encodes to a mesh, or that reads its own forecasts.
    """
    if graphs.mesh is not None or graphs.turns > 1:
        got = "model=epd" if graphs.mesh is not None else f"rollout={graphs.turns}"
        raise ValueError(f"a metric of the inputs needs a network that reads the data alone, got {got}; leave it out")
    terms = [term[nodes] for term in graphs.source.terms]
    return first_of_graph(graphs.net, terms, work, comm.sum, graphs.samples)


@dataclass(frozen=True, eq=False)
class SampledGraphs:
    """A graph whose nodes have S samples of inputs and targets, as source of local graphs.

    Parameters
    ----------
    net : GraphNet or EncodeProcessDecode
        The network.
    graph : Graph
        The whole graph.
    features : ndarray, shape (n, S F)
        Inputs, sample after sample.
    targets : ndarray, shape (n, S 2 C)
        Sums of them are those of aggregated nodes.
    samples : int
        Number S.
    turns : int
        Of a rollout: nodes then feed back, and local graphs keep all their nodes in every layer.
    mesh : HiddenMesh, optional
        Of `epd`.
    weighted : bool
        Whether the weights of the graph enter the propagation of GCN and GraphSAGE.
    """

    net: Any
    graph: Graph
    features: Floats
    targets: Floats
    samples: int
    turns: int = 1
    mesh: HiddenMesh | None = None
    weighted: bool = False

    @cached_property
    def operator(self) -> Any:
        """The propagation matrix of a layer, shape (n, n)."""
        if self.weighted:
            return self.net.layer.operator(self.graph, weighted=True)
        return self.net.layer.operator(self.graph)

    @cached_property
    def source(self) -> Any:
        """What local graphs are cut from."""
        if self.mesh is not None:
            return MeshSource(self.mesh, self.features, self.targets)
        return Source.of(self.net.kind, self.operator, self.features, self.targets)

    def piece(self, outputs: Ints, targets: Floats | None = None) -> Any:
        """Return a graph of outputs with as much around them as they depend on: they are exact.

        Parameters
        ----------
        outputs : ndarray, shape (k,), int64
            Nodes whose outputs enter the loss.
        targets : ndarray, shape (n, S 2 C), optional
            Others than those of all nodes.
        """
        if self.turns == 1:
            return self.source.piece(outputs, self.net.layers, targets=targets)
        wanted = self.targets if targets is None else targets
        if self.mesh is not None:  # every node is fed back, and depends on nearly all others
            order = np.concatenate([outputs, np.setdiff1d(np.arange(self.graph.nodes), outputs)])
            counted = np.zeros_like(wanted)
            counted[outputs] = wanted[outputs]
            return self.source.piece(order, self.net.layers, targets=counted)
        reach = self.turns * self.net.layers
        mask = np.zeros(self.graph.nodes, dtype=bool)
        mask[outputs] = True
        around = np.flatnonzero(grow(self.graph, torch.from_numpy(outputs), reach).numpy() & ~mask)
        order = np.concatenate([outputs, around])
        # Rows at the rim are wrong for want of their neighbours, but too far away to be read.
        part = Source.of(self.net.kind, self.operator[order][:, order], self.features[order], wanted[order] * 1.0)
        part.targets[len(outputs) :] = 0.0
        return part.piece(np.arange(len(order)), self.net.layers, propagated=False)

    def restricted(self, outputs: Ints, around: Ints, targets: Floats) -> Any:
        """Return the graph between the outputs and some nodes around them, whose rows keep their sums where cut.

        Parameters
        ----------
        outputs : ndarray, shape (k,), int64
            Nodes whose outputs enter the loss.
        around : ndarray, shape (m,), int64
            Others.
        targets : ndarray, shape (n, S 2 C)
            Of all nodes.
        """
        order = np.concatenate([outputs, around])
        part, wanted = self.source.restricted(order), targets[order] * 1.0
        wanted[len(outputs) :] = 0.0
        layers = self.net.layers
        if self.turns == 1:
            return part.piece(np.arange(len(outputs)), layers, targets=wanted)
        return part.piece(np.arange(len(order)), layers, propagated=False, targets=wanted)

    def aggregated(self, labels: Ints) -> Any:
        """Return the composite graph of a map from nodes to composite nodes.

        Parameters
        ----------
        labels : ndarray, shape (n,), int64
            Composite node 0, ..., m - 1 of every node.
        """
        if self.turns == 1 or self.mesh is not None:
            return self.source.aggregated(labels, self.net.layers)
        n, m = len(labels), int(labels.max()) + 1
        t = sp.csr_matrix((np.ones(n), (labels, np.arange(n))), shape=(m, n))
        mean = sp.csr_matrix(sp.diags(1.0 / np.bincount(labels, minlength=m)) @ t)
        operator = sp.csr_matrix(mean @ self.operator @ t.T)
        coarse = Source.of(self.net.kind, operator, mean @ self.features, np.asarray(t @ self.targets))
        return coarse.piece(np.arange(m), self.net.layers, propagated=False)

    def stack(self, pieces: Sequence[Any], single: bool = False, **kind: Any) -> Any:
        """Return local graphs as one batch.

        Parameters
        ----------
        pieces : sequence of Piece or MeshPiece
            The local graphs.
        single : bool
            One graph with parameters of shape (N,) instead of a batch.
        **kind
            `dtype` and `device` of the tensors.
        """
        if self.mesh is not None:
            return stack_meshes(pieces, single, self.samples, **kind)
        assert all(isinstance(piece, Piece) for piece in pieces)
        return stack(pieces, single, self.samples, **kind)
