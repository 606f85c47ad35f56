"""How far outputs of a network on a graph reach: measured, so that a part of the graph with its halo gives the same."""

from __future__ import annotations

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

    First a node without edges is added, which may not change any output. Then the support of derivatives by the
    features is measured at a few nodes, and the outputs of a part of the graph with so many hops around it are
    compared with those of the whole graph; hops are added until they agree: a layer that divides by degrees needs one
    more, as the degrees of the outermost nodes have to be right.

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
        if agrees(net, arguments, whole, nodes, hops + more):
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
    """Refuse a network whose outputs change when a node without edges is added."""
    values = {}
    for name, value in arguments.whole.items():
        values[name] = value
        if arguments.of(name) == "nodes":
            more = value[-1:] * 3 + 1 if value.dtype.is_floating_point else value[-1:]
            values[name] = torch.cat([value, more])
    with torch.no_grad():
        try:
            found = arguments.call(net, values)[: len(whole)]
        except ValueError:  # tensors of its own with a row per node
            found = torch.full_like(whole, torch.inf)
    if not close(found, whole):
        raise NotLocalError(
            f"outputs of {type(net).__name__} must not change when a node without edges is added, but they do: a layer "
            "looks at all nodes (GraphNorm, global attention, pooling, a virtual node, tensors of its own per node); "
            "decompose its parameters: subdomains=layers"
        )


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
    with torch.enable_grad():
        made = arguments.call(net, arguments.whole | floats).square().sum()
        found = torch.autograd.grad(made, list(floats.values()), allow_unused=True) if made.requires_grad else ()
    return [name for name, g in zip(floats, found, strict=False) if g is None or not bool((g != 0).any())]
