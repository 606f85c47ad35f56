"""Options of node classification: which are allowed, and which suit a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mldd.algebra import check_choices, check_least
from mldd.problems.graphs.graph_levels import Clustering, kinds_of
from mldd.problems.nets import GRAPH_ACTIVATIONS, GraphActivation, GraphNet
from mldd.problems.nets.layers import check_kind, layer_of

SHARE = 0.037  # of the nodes: clusters of the first coarse graph, 100 for Cora; 300 cost more and gained nothing
# Hyper-parameters that suit small citation graphs: tuned on Cora's training loss, seeds 0 and 1.
_LARGE_FEATURES = ("photo", "physics")  # hundreds of ones per node, not normalised: the same rate diverges
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "local-adam": {"local.lr": 0.01},
    "sgd": {"lr": 0.5, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.1},
    "adagrad": {"rate": 0.1, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.1, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.1, "local.varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse.steps": 5},
}
_CHOICES = {
    "local": ("composite", "own", "restricted"),
    "subdomains": ("graph", "parameters", "both"),
    "clustering": ("metis", "matching", "features"),
}


@dataclass(frozen=True)
class Network:
    """The network of a node classification, and how it is kept from fitting too closely.

    Parameters
    ----------
    model : str
        Kind of layer: gcn, sage, gin, gat, gatv2, transformer, or ``file.py:Class``; see `mldd.problems.nets.layers`.
    hidden, layers : int
        Width and number of layers.
    heads : int
        Of attention; they share the hidden width.
    activation : {"relu", "gelu", "tanh", "elu"}
        Between layers.
    residual : bool
        Whether layers add to their state, so that deep networks train; see `GraphNet`.
    dropout : float
        Probability, on the features and on every hidden layer.
    decay : float
        The loss has ``decay / 2 ||W_1||^2``.

    Raises
    ------
    ValueError
        Values out of range.
    """

    model: str = "gcn"
    hidden: int = 16
    layers: int = 2
    heads: int = 1
    activation: GraphActivation = "relu"
    residual: bool = False
    dropout: float = 0.5
    decay: float = 5e-4

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_kind(self.model, "model")
        layer_of(self.model)
        check_choices(self, {"activation": tuple(GRAPH_ACTIVATIONS)})
        check_least(self, {"hidden": 1, "layers": 1})
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"`decay` must be >= 0 and finite, got {self.decay}")

    def made(self, inputs: int, outputs: int, attributes: int) -> GraphNet:
        """Return the network.

        Parameters
        ----------
        inputs, outputs : int
            Features of a node, and classes.
        attributes : int
            Attributes of an edge that its layers use.
        """
        widths = (inputs, *[self.hidden] * (self.layers - 1), outputs)
        return GraphNet(self.model, widths, self.heads, self.activation, self.residual, attributes)


@dataclass(frozen=True)
class Spaces:
    """What the subdomains and coarse levels of a node classification are made of.

    Parameters
    ----------
    clusters : int
        Nodes of the first coarse graph, and clusters of a composite graph before its own nodes become fine; 0: 3.7 % of
        all nodes.
    clustering : {"metis", "matching", "features"}
        Clusters of neighbours (`mldd.graph.aggregation`), or of nodes with similar inputs
        (`mldd.problems.graphs.similarity`).
    kept : float
        Share of the entries of coarse features that are kept, see `mldd.problems.graphs.graph_levels.thinned`.
    grades : int
        Sizes of clusters in a composite graph: each begins `layers` hops farther out and has a quarter of the clusters.
    coarsen : str
        What coarse levels have less of: some of ``graph``, ``width``, ``depth`` and ``data`` joined by '+', see
        `mldd.problems.graphs.graph_levels.Ladder`.
    local : {"composite", "own", "restricted"}
        Local models of subdomains: composite graphs (fine inside, aggregated outside); the loss of the own nodes, with
        all nodes that it depends on, where an overlap adds to the own nodes; or that of the own nodes on the graph
        between these and the overlap, which is exact for an overlap of as many layers as the network has.
    subdomains : {"graph", "parameters", "both"}
        What is decomposed: the graph (every subdomain updates all parameters), the layers of the network, or pairs of a
        graph part and a layer.
    partition : str
        Method that cuts the graph into parts, see `mldd.graph.partition`: metis, or mixed for parts that resemble each
        other, say.

    Raises
    ------
    ValueError
        Values out of range.
    """

    clusters: int = 0
    clustering: Clustering = "metis"
    kept: float = 1.0
    grades: int = 1
    coarsen: str = "graph"
    local: Literal["composite", "own", "restricted"] = "composite"
    subdomains: Literal["graph", "parameters", "both"] = "graph"
    partition: str = "metis"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, _CHOICES)
        check_least(self, {"clusters": 0, "grades": 1})
        if self.clustering == "features" and self.grades > 1:
            raise ValueError(
                f"`grades` must be 1 for clustering=features, whose clusters are not nested, got {self.grades}"
            )
        if not 0 < self.kept <= 1:
            raise ValueError(f"`kept` must be in (0, 1], got {self.kept}")
        kinds_of(self.coarsen)


def check_validated(labels: str) -> None:
    """Refuse a validation on nodes that are trained on.

    Parameters
    ----------
    labels : str
        Which nodes are in the loss.

    Raises
    ------
    ValueError
        The validation nodes are among them.
    """
    if labels == "all":
        raise ValueError(
            "validation needs nodes that are not trained on, got labels=all, which trains on the validation nodes; "
            "leave out labels=all or the validation"
        )


def settings_of(solver: str, name: str, layers: int = 0) -> dict[str, Any]:
    """Return hyper-parameters of a solver of the command line that suit the classification of the graph `name`.

    Parameters
    ----------
    solver : str
        Name of the solver on the command line.
    name : str
        Of the graph.
    layers : int
        How many the network has, where these are the subdomains; else 0.
    """
    advised = _SETTINGS.get(solver, {}) | ({"parts": min(4, layers)} if layers else {})
    if name in _LARGE_FEATURES:
        advised |= {key: 0.1 * advised[key] for key in ("rate", "smoother.rate", "local.rate") if key in advised}
    return advised
