"""Which fields of a graph a network is called with, by the parameters of its ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

_GRAPHS = ("data", "batch", "graph", "graphs", "g")  # a forward with this argument alone is called with the graph


def takes_graph(net: nn.Module) -> bool:
    """Return whether a network is called with the graph itself, as in ``forward(self, data)``.

    Parameters
    ----------
    net : nn.Module
        The network.
    """
    return [p.name for p in _needed(net)] in [[name] for name in _GRAPHS]


def _needed(net: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of ``forward`` that have no default."""
    parameters = inspect.signature(net.forward).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def names_in_order(net: nn.Module) -> tuple[str, ...]:
    """Return the names that a ``Sequential`` of torch_geometric was made with, whose forward has none; else nothing.

    Parameters
    ----------
    net : nn.Module
        The network.
    """
    return tuple(getattr(getattr(net, "signature", None), "param_dict", ()))


def names_of_arguments(net: nn.Module, fields: Mapping[str, Any], given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return which fields of a graph a network is called with: the names of the parameters of its ``forward``.

    Parameters
    ----------
    net : nn.Module
        The network.
    fields : dict
        Of the graph, by name.
    given : sequence of str
        Names that the user has said, in the order in which ``forward`` takes them.

    Raises
    ------
    ValueError
        A field that the network needs and the graph does not have, or parameters without names.
    """
    parameters = list(inspect.signature(net.forward).parameters.values())
    if not given and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ValueError(
            f"`forward` of {type(net).__name__} must name its parameters, got {inspect.signature(net.forward)}; say "
            "inputs=(names of fields in the order of forward), and give a network before it is compiled"
        )
    needed = given or [p.name for p in _needed(net)]
    lacking = [name for name in needed if name not in fields]
    if lacking:
        raise ValueError(
            f"`data` must have {', '.join(needed)} for {type(net).__name__}, got {' '.join(fields)}; add "
            f"{', '.join(lacking)}, or say inputs=(names of fields in the order of forward)"
        )
    if given:
        return tuple(given)
    return tuple(p.name for p in parameters if p.name in fields and p.kind is not p.VAR_KEYWORD)
