"""What a network on a graph does in training mode alone: random numbers, of which kind, and other outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mldd.algebra import FlatModule
from mldd.problems.modules import Noise, PartFunctions
from mldd.problems.modules.one_graph.graph_arguments import Arguments
from mldd.problems.modules.one_graph.graph_loss import modes
from mldd.problems.modules.one_graph.locality import close


def is_noisy(model: FlatModule, arguments: Arguments, at: Tensor) -> bool:
    """Return whether a network draws random numbers in training mode: dropout of any kind, noise, edges left out.

    Parameters
    ----------
    model : FlatModule
        The network.
    arguments : Arguments
        How it is called.
    at : Tensor, shape (N,)
        Parameters.
    """
    with model.at(at, modes=modes(model.module, True)), torch.no_grad():
        before = _states(at.device)
        arguments.call(model.module, arguments.whole)
        return any(not torch.equal(a, b) for a, b in zip(before, _states(at.device), strict=True))


def check_shared_noise(model: FlatModule, arguments: Arguments, at: Tensor) -> None:
    """Refuse random numbers that ranks with a part of the graph each would draw differently than one rank.

    Those of ``torch.nn.functional.dropout`` on rows of nodes or edges depend on their numbers and are the same on all
    ranks, and so are those whose number does not depend on the graph.

    Parameters
    ----------
    model : FlatModule
        The network.
    arguments : Arguments
        How it is called.
    at : Tensor, shape (N,)
        Parameters.

    Raises
    ------
    ValueError
        On half of the graph other random numbers are drawn than on the whole one.
    """
    states = []
    for nodes in (torch.arange(arguments.nodes), torch.arange(arguments.nodes // 2)):
        values, edges = arguments.part(nodes)
        numbered = PartFunctions(nodes, edges, len(nodes), Noise(0, 0), None, values.get("edge_index"))
        with model.at(at, modes=modes(model.module, True)), torch.no_grad(), numbered:
            arguments.call(model.module, values)
            states.append(_states(at.device))
    if any(not torch.equal(a, b) for a, b in zip(*states, strict=True)):
        raise ValueError(
            f"random numbers of {type(model.module).__name__} in training must be those of "
            "torch.nn.functional.dropout on rows of nodes or edges to be the same on several ranks, got others "
            "(dropout_edge, randn_like?); use one rank, or nn.Dropout on states or edge weights"
        )


def is_two_faced(model: FlatModule, arguments: Arguments, at: Tensor) -> bool:
    """Return whether a network without random numbers returns something else in training mode.

    Parameters
    ----------
    model : FlatModule
        The network.
    arguments : Arguments
        How it is called.
    at : Tensor, shape (N,)
        Parameters.
    """
    made = []
    for training in (True, False):
        with model.at(at, modes=modes(model.module, training)), torch.no_grad():
            made.append(arguments.call(model.module, arguments.whole))
    return made[0].shape != made[1].shape or not close(*made)


def _states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]
