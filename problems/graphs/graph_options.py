"""Options of node classification: which are allowed, and which suit a solver."""

from __future__ import annotations

from typing import Any

import numpy as np

from mldd.problems.nets import GRAPH_ACTIVATIONS
from mldd.problems.nets.layers import check_kind, layer_of

SHARE = 0.037  # of the nodes: clusters of the first coarse graph, 100 for Cora; 300 cost more and gained nothing
# Hyper-parameters that suit small citation graphs: tuned on Cora's training loss, seeds 0 and 1.
_LARGE_FEATURES = ("photo", "physics")  # hundreds of ones per node, not normalised: the same rate diverges
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "sgd": {"lr": 0.5, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.1},
    "adagrad": {"rate": 0.1, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.1, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.1, "local.varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse.steps": 5},
}
_CHOICES = {
    "activation": tuple(GRAPH_ACTIVATIONS),
    "local": ("composite", "own"),
    "subdomains": ("graph", "parameters", "both"),
    "labels": ("train", "all"),
    "clustering": ("metis", "matching", "features"),
    "dtype": ("float64", "float32"),
    "evaluate": ("dtype", "float32", "bfloat16"),
}


def check_options(problem: Any) -> None:
    """Refuse options of a node classification that make no sense.

    Parameters
    ----------
    problem : Any, a node classification
        What is checked.

    Raises
    ------
    ValueError
    """
    check_kind(problem.model, "model")
    layer_of(problem.model)
    for name, choices in _CHOICES.items():
        if getattr(problem, name, choices[0]) not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(problem, name)!r}")
    for name, least in (("hidden", 1), ("layers", 1), ("clusters", 0), ("grades", 1), ("split", 0), ("seed", 0)):
        if getattr(problem, name, least) < least:
            raise ValueError(f"`{name}` must be >= {least}, got {getattr(problem, name)}")
    if getattr(problem, "clustering", "") == "features" and problem.grades > 1:
        raise ValueError(
            f"`grades` must be 1 for clustering=features, whose clusters are not nested, got {problem.grades}"
        )
    if not 0 < getattr(problem, "kept", 1.0) <= 1:
        raise ValueError(f"`kept` must be in (0, 1], got {problem.kept}")
    if not 0 <= problem.dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {problem.dropout}")
    if not 0 <= problem.decay < np.inf:
        raise ValueError(f"`decay` must be >= 0 and finite, got {problem.decay}")


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


def settings_of(solver: str, name: str) -> dict[str, Any]:
    """Return hyper-parameters of a solver of the command line that suit the classification of the graph `name`.

    Parameters
    ----------
    solver : str
        Name of the solver on the command line.
    name : str
        Of the graph.
    """
    advised = dict(_SETTINGS.get(solver, {}))
    if name in _LARGE_FEATURES:
        advised |= {key: 0.1 * advised[key] for key in ("rate", "smoother.rate", "local.rate") if key in advised}
    return advised
