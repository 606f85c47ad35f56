"""How far outputs of a network on a graph reach: measured, so that a part of the graph with its halo gives the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mldd.problems.modules.one_graph.graph_arguments import Arguments

_TRIED = 4  # nodes whose outputs are looked at
_MOST = 64  # hops; more are taken for no bound at all


class NotLocalError(ValueError):
    """Outputs depend on nodes at any distance: parts of the graph cannot give them."""


def hops_of(net: nn.Module, arguments: Arguments, seed: int = 0) -> int:
    """Return how many edges away a node may be that the output at a node depends on.

    First nodes are added that the others do not hear of, which may not change any output. Then the support of
    derivatives by the features is measured at a few nodes, and the outputs of parts of the graph with so many hops
    around them are compared with those of the whole graph; hops are added until they agree: a layer that divides by
    degrees needs one more, as the degrees of the outermost nodes have to be right.

    Parameters
    ----------
    net : nn.Module
        The network, in evaluation mode.
    arguments : Arguments
        What it is called with.
    seed : int
        Of the choice of nodes.

    Raises
    ------
    NotLocalError
        Some output depends on nodes farther away than any hop count explains.
    """
    nodes = torch.randperm(arguments.nodes, generator=torch.Generator().manual_seed(seed))[: 8 * _TRIED]
    with torch.no_grad():
        whole = arguments.call(net, arguments.whole)
    if whole.dim() == 0 or len(whole) != arguments.nodes:
        raise NotLocalError(
            f"{type(net).__name__} must return a row for each of {arguments.nodes} nodes to be decomposed by graph "
            f"parts, got shape {tuple(whole.shape)}; decompose its parameters: subdomains=layers"
        )
    _check_indifferent(net, arguments, whole)
    hops = max(_support(net, arguments, int(node)) for node in nodes[:_TRIED])
    for more in range(3):
        several = [nodes, *nodes[:_TRIED, None]]  # a part of many nodes may have the extremes of the whole graph
        if all(agrees(net, arguments, whole, some, hops + more) for some in several):
            return hops + more
    raise NotLocalError(
        f"outputs of {type(net).__name__} on a part with {hops + 2} hops around it must be those on the whole graph, "
        "got others: a layer looks at all nodes or edges (GraphNorm, global attention, pooling, a virtual node, "
        "tensors of its own per node); decompose its parameters: subdomains=layers"
    )


def _support(net: nn.Module, arguments: Arguments, node: int) -> int:
    """Return the distance of the farthest node that the derivative of the output at `node` reaches."""
    floats = {
        name: value.detach().clone().requires_grad_()
        for name, value in arguments.whole.items()
        if arguments.of(name) == "nodes" and value.dtype.is_floating_point
    }
    if not floats:
        return 1
    with torch.enable_grad():
        out = arguments.call(net, arguments.whole | floats)[node]
        mixed = (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)).sum()
        if not mixed.requires_grad:
            return 0
        found = torch.autograd.grad(mixed, list(floats.values()), allow_unused=True)
    reached = np.zeros(arguments.nodes, dtype=bool)
    for g in found:
        if g is not None:
            reached |= (g.flatten(1) != 0).any(1).cpu().numpy()
    return _distances(arguments, node, reached)


def _check_indifferent(net: nn.Module, arguments: Arguments, whole: Tensor) -> None:
    """Refuse a network whose outputs change when nodes are added that the others do not hear of."""
    if _changed(net, arguments, whole, heard=False):
        raise NotLocalError(
            f"outputs of {type(net).__name__} must not change when a node without edges is added, or two that are "
            "joined to each other alone, but they do: a layer looks at all nodes or edges (GraphNorm, global "
            "attention, pooling, a virtual node, tensors of its own per node); decompose its parameters: "
            "subdomains=layers"
        )
    if _is_directed(arguments) and _changed(net, arguments, whole, heard=True):
        raise NotLocalError(
            f"outputs of {type(net).__name__} must not change when a node is added that others send to, but they do: a "
            "layer sends against the edges (flow='target_to_source'?); give edge_index.flip(0) instead, or edges in "
            "both directions, or decompose its parameters: subdomains=layers"
        )


def _changed(net: nn.Module, arguments: Arguments, whole: Tensor, *, heard: bool) -> bool:
    """Return whether outputs change where nodes are added: by themselves, or ones that hear of the others."""
    with torch.no_grad():
        try:
            found = arguments.call(net, _with_more(arguments, heard=heard))[: len(whole)]
        except ValueError:  # tensors of its own with a row per node or edge
            return True
    return not close(found, whole)


def _is_directed(arguments: Arguments) -> bool:
    """Return whether some edge goes one way only."""
    source, target = arguments.edge_index
    there, back = (torch.unique(a * arguments.nodes + b) for a, b in ((source, target), (target, source)))
    return not torch.equal(there, back)


def _with_more(arguments: Arguments, *, heard: bool) -> dict[str, Any]:
    """Return the arguments on a graph with a node without edges, and two more.

    These are joined to each other, or get an edge from two nodes of the graph each. Their rows are larger and smaller
    than the last one, for layers that take a maximum or the first of all.
    """
    nodes, values = arguments.nodes, {}
    signs = {"nodes": (1, -1, -1), "edges": (1, -1)}
    for name, value in arguments.whole.items():
        of = arguments.of(name)
        if of == "index":
            ends = [[0, nodes - 1] if heard else [nodes + 2, nodes + 1], [nodes + 1, nodes + 2]]
            values[name] = torch.cat([value, torch.tensor(ends, device=value.device)], 1)
        elif of in signs and len(value):
            last = value[-1:]
            more = [sign * (3 * last + 1) if value.dtype.is_floating_point else last for sign in signs[of]]
            values[name] = torch.cat([value, *more])
        else:
            values[name] = value
    return values


def close(found: Tensor, expected: Tensor) -> bool:
    """Return whether outputs are those that are expected, to rounding.

    Parameters
    ----------
    found, expected : Tensor, shape (n, k)
        The outputs.
    """
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    return bool(((found - expected).abs() <= tolerance * (1 + expected.abs().max())).all())


def _distances(arguments: Arguments, node: int, reached: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """Return the hops within which all `reached` nodes send to `node`, as far as they do at all."""
    inside = np.zeros(arguments.nodes, dtype=bool)
    inside[node] = True
    for hops in range(_MOST):
        if not (reached & ~inside).any():
            return hops
        grown = arguments.grown(inside)
        if (grown == inside).all():
            return hops
        inside = grown
    return _MOST


def agrees(net: nn.Module, arguments: Arguments, whole: Tensor, nodes: Tensor, hops: int) -> bool:
    """Return whether the outputs at some nodes are the same on the part with `hops` around them, to rounding.

    Parameters
    ----------
    net : nn.Module
        The network, in evaluation mode.
    arguments : Arguments
        What it is called with.
    whole : Tensor, shape (n, k)
        Its outputs on the whole graph.
    nodes : Tensor, shape (m,), int64
        Which outputs are compared.
    hops : int
        Edges that a message may travel.
    """
    part = arguments.reached(nodes, hops)
    values, _ = arguments.part(part)
    with torch.no_grad():
        try:
            found = arguments.call(net, values)[: len(nodes)]
        except ValueError:  # tensors of its own with a row per node
            return False
    return close(found, whole[nodes.to(whole.device)])


def ignored(net: nn.Module, arguments: Arguments) -> list[str]:
    """Return the arguments that the outputs do not depend on: some networks take what their layers do not use.

    Parameters
    ----------
    net : nn.Module
        The network, with parameters that are not zero.
    arguments : Arguments
        What it is called with.
    """
    floats = {
        name: value.detach().clone().requires_grad_()
        for name, value in arguments.whole.items()
        if isinstance(value, Tensor) and value.dtype.is_floating_point
    }
    if not floats:
        return []
    with torch.enable_grad():
        made = arguments.call(net, arguments.whole | floats).square().sum()
        found = torch.autograd.grad(made, list(floats.values()), allow_unused=True) if made.requires_grad else ()
    return [name for name, g in zip(floats, found, strict=False) if g is None or not bool((g != 0).any())]
