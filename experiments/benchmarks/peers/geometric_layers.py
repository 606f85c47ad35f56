"""Two-layer graph networks of torch_geometric with the weights of `GraphNet`: peers of `layers.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.nn import conv

# Per kind the names of torch_geometric's parameters in the order of those of `GraphNet`; others are zero.
NAMES = {
    "gcn": ("lin.weight", "bias"),
    "sage": ("lin_r.weight", "lin_l.weight", "lin_l.bias"),
    "gin": ("nn.0.weight", "nn.0.bias", "nn.2.weight", "nn.2.bias", "eps"),
    "gat": ("lin.weight", "att_dst", "att_src", "bias"),
    "gatv2": ("lin_l.weight", "lin_r.weight", "att", "bias"),
    "transformer": ("lin_query.weight", "lin_key.weight", "lin_value.weight", "lin_skip.weight", "lin_skip.bias"),
}


def layer(kind: str, inner: int, outer: int, heads: int, last: bool) -> Any:
    """Return a layer, its normalisation cached where it has one."""
    if kind == "gcn":
        return nn.GCNConv(inner, outer, cached=True)
    if kind == "sage":
        return nn.SAGEConv(inner, outer)
    if kind == "gin":
        mlp = torch.nn.Sequential(torch.nn.Linear(inner, outer), torch.nn.ReLU(), torch.nn.Linear(outer, outer))
        return nn.GINConv(mlp, train_eps=True)
    made = {"gat": nn.GATConv, "gatv2": nn.GATv2Conv, "transformer": nn.TransformerConv}[kind]
    return made(inner, outer if last else outer // heads, heads=heads, concat=not last)


class GeometricNetwork:
    """The network, evaluated on an adjacency in any form that its layers take.

    `propagated` is A X where the first layer is to use it (GCN and GraphSAGE), which the layers themselves never keep.
    """

    def __init__(self, kind: str, widths: Sequence[int], heads: int, views: Sequence[Tensor]) -> None:
        self.kind = kind
        last = len(widths) - 2
        pairs = enumerate(zip(widths, widths[1:], strict=False))
        self.layers = [layer(kind, *pair, heads, k == last).to(views[0].dtype) for k, pair in pairs]
        names = NAMES[kind]
        with torch.no_grad():
            for p in (p for made in self.layers for p in made.parameters()):
                p.zero_()
            for k, made in enumerate(self.layers):
                named = dict(made.named_parameters())
                for name, view in zip(names, views[k * len(names) :], strict=False):
                    own = named[name]
                    own.copy_(view.t() if view.dim() == 2 else view.view(own.shape))
        self.parameters = [p for made in self.layers for p in made.parameters()]

    def evaluation(
        self, features: Tensor, adjacency: Tensor, labels: Tensor, propagated: Tensor | None = None
    ) -> Callable[[], tuple[Tensor, list[Tensor]]]:
        """Return a function that gives loss and gradients, one per parameter of torch_geometric."""

        def evaluate() -> tuple[Tensor, list[Tensor]]:
            state = torch.relu(self._first(features, adjacency, propagated))
            loss = torch.nn.functional.cross_entropy(self.layers[1](state, adjacency), labels)
            return loss.detach(), list(torch.autograd.grad(loss, self.parameters))

        return evaluate

    def _first(self, features: Tensor, adjacency: Tensor, propagated: Tensor | None) -> Tensor:
        first = self.layers[0]
        if propagated is None:
            out: Tensor = first(features, adjacency)
            return out
        if isinstance(first, conv.GCNConv):
            return first.lin(propagated) + first.bias
        return first.lin_l(propagated) + first.lin_r(features)

    def in_order(self, gradients: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return gradients tensor by tensor in the order and shapes of `GraphNet`."""
        names = [f"{k}.{name}" for k, made in enumerate(self.layers) for name, _ in made.named_parameters()]
        named = dict(zip(names, gradients, strict=True))
        wanted = [named[f"{k}.{name}"] for k in range(len(self.layers)) for name in NAMES[self.kind]]
        return [
            g.t().contiguous() if len(shape) == 2 else g.reshape(shape) for g, shape in zip(wanted, shapes, strict=True)
        ]
