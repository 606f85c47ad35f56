"""Options of a network on a graph: how the graph is divided, and which hyper-parameters suit a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mldd.algebra import check_choices, check_least
from mldd.problems.modules.one_graph.halo_choice import HALOS

_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "local-adam": {"local.lr": 0.01},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.05},
    "adagrad": {"rate": 0.05, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.05, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.05, "local.varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse.steps": 5},
}


@dataclass(frozen=True)
class Division:
    """How a graph is divided, or the network on it.

    Parameters
    ----------
    subdomains : {"graph", "layers", "both"}
        What is decomposed: the graph, the network into runs of layers, or, of many graphs alone, both.
    local : {"composite", "own", "restricted"}
        Local models of graph parts: the nodes of the part and clusters of all others; the mean loss over the labelled
        nodes of the part with all nodes that it depends on; or with the nodes of the overlap alone.
    clusters : int
        Nodes of the first coarse graph, and clusters of a composite graph; 0: 3.7 % of the nodes.
    halo : {"auto", "deep", "exchange"}
        On several ranks: evaluate all nodes that the outputs of a rank depend on, or fetch states of neighbours behind
        every propagation of torch_geometric's layers; by default what costs less.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    subdomains: Literal["graph", "layers", "both"] = "graph"
    local: Literal["composite", "own", "restricted"] = "composite"
    clusters: int = 0
    halo: Literal["auto", "deep", "exchange"] = "auto"

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, {"subdomains": ("graph", "layers", "both"), "halo": HALOS})
        check_choices(self, {"local": ("composite", "own", "restricted")})
        check_least(self, {"clusters": 0})


def settings_of(solver: str, layers: int = 0) -> dict[str, Any]:
    """Return hyper-parameters of a solver of the command line that suit small networks on graphs.

    Parameters
    ----------
    solver : str
        Name of the solver on the command line.
    layers : int
        How many the network has, where these are the subdomains; else 0.
    """
    return _SETTINGS.get(solver, {}) | ({"parts": min(4, layers)} if layers else {})
