"""Models of torch_geometric that the built-in layers evaluate, with the parameters that the model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from mldd.problems.nets.composite import Source, stack
from mldd.problems.nets.dropout import Dropout
from mldd.problems.nets.graph_net import Batch, GraphActivation, GraphNet
from mldd.problems.nets.layers import layer_of

_MODELS = "torch_geometric.nn.models.basic_gnn"
_ACTIVATIONS: dict[type[nn.Module], GraphActivation] = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.ELU: "elu",
}
_SPARSE = 0.25  # share of non-zeros up to which features are stored sparse
_SIMPLE = (bool, int, float, str, type(None))


# Parameters may have a leading axis, for several networks at once.


def _gcn(conv: Any) -> list[Tensor]:
    return [conv.lin.weight.mT, conv.bias]


def _sage(conv: Any) -> list[Tensor]:
    return [conv.lin_r.weight.mT, conv.lin_l.weight.mT, conv.lin_l.bias]


def _gin(conv: Any) -> list[Tensor]:
    first, second = conv.nn.lins
    return [first.weight.mT, first.bias, second.weight.mT, second.bias, conv.eps]


def _gat(conv: Any) -> list[Tensor]:
    return [conv.lin.weight.mT, conv.att_dst.flatten(-3), conv.att_src.flatten(-3), conv.bias]


# By the class of the model: the kind of the layers, and their tensors in the order of `Layer.tensors`.
_KINDS: dict[str, tuple[str, Callable[[Any], list[Tensor]]]] = {
    "GCN": ("gcn", _gcn),
    "GraphSAGE": ("sage", _sage),
    "GIN": ("gin", _gin),
    "GAT": ("gat", _gat),
}


class Wanted(NamedTuple):
    """A graph, and what is wanted of it.

    Parameters
    ----------
    values : dict
        Arguments of the model by name: ``x``, ``edge_index``, perhaps ``edge_weight``.
    features : ndarray or csr_matrix, shape (n, F)
        What `stored` returns for x.
    outputs : Tensor, shape (k,), int64
        Nodes whose outputs are wanted.
    nodes : Tensor, shape (n,), int64
        Global numbers of the nodes, for dropout; empty if there is none.
    """

    values: Mapping[str, Any]
    features: Any
    outputs: Tensor
    nodes: Tensor


@dataclass(frozen=True, eq=False)
class BuiltIn:
    """A model of torch_geometric as a network of built-in layers.

    Parameters
    ----------
    net : GraphNet
        The same network.
    dropout : float
        Probability, between the layers.
    of_layer : callable
        Returns the tensors of one layer of the model, views of its parameters.
    """

    net: GraphNet
    dropout: float
    of_layer: Callable[[Any], list[Tensor]]

    def tensors(self, model: Any) -> list[Tensor]:
        """Return the tensors of the network, views of the parameters that the model has now.

        Parameters
        ----------
        model : nn.Module
            The model.
        """
        return [tensor for conv in model.convs for tensor in self.of_layer(conv)]

    def batch(self, graphs: Sequence[Wanted], single: bool = True) -> Batch:
        """Return graphs as the network is evaluated on them: one, or several with parameters of their own.

        Parameters
        ----------
        graphs : sequence of Wanted
            The graphs.
        single : bool
            Whether it is one graph, with parameters that have no leading axis.
        """
        pieces, propagated = [], None
        for graph in graphs:
            operator, none = self._operator(graph.values), np.zeros((len(graph.values["x"]), 1))
            source = Source.of(self.net.kind, operator, graph.features, none)
            propagated = source.cheaper if propagated is None else propagated  # the same for all
            piece = source.piece(graph.outputs.cpu().numpy(), self.net.layers, propagated=propagated)
            if len(graph.nodes):
                piece = replace(piece, nodes=graph.nodes.cpu().numpy()[piece.nodes])
            pieces.append(piece)
        x = graphs[0].values["x"]
        return stack(pieces, single=single, dtype=x.dtype, device=x.device)

    def _operator(self, values: Mapping[str, Any]) -> Any:
        """Return the operator of the layers, csr_matrix of shape (n, n): a row has what its node receives."""
        kind, n = self.net.kind, len(values["x"])
        source, target = values["edge_index"].cpu().numpy()
        weights = np.ones(len(source))
        if kind == "gcn" and values.get("edge_weight") is not None:
            weights = values["edge_weight"].detach().cpu().double().numpy().reshape(-1)
        loops = (source == target) & (kind in ("gcn", "gat"))
        pattern = sp.csr_matrix((weights[~loops], (target[~loops], source[~loops])), shape=(n, n))
        if kind in ("gcn", "gat"):  # a node has one loop: of weight one, or (gcn) that which its own loop has
            own = np.ones(n)
            if kind == "gcn":
                own[source[loops]] = weights[loops]
            pattern = sp.csr_matrix(pattern + sp.diags(own))
        degrees = np.asarray(pattern.sum(1), dtype=np.float64).ravel()
        if kind == "gcn":
            degrees -= 1.0  # the layer counts the loop itself
        return layer_of(kind).values(pattern, degrees, degrees)

    def __call__(self, model: nn.Module, batch: Batch, seed: int = 0, step: int | None = None) -> Tensor:
        """Return the outputs at the wanted nodes, shape (k, C), or (p k, C) padded, differentiable in the parameters.

        Parameters
        ----------
        model : nn.Module
            The model.
        batch : Batch
            What `batch` has returned.
        seed : int
            Of dropout.
        step : int, optional
            Of dropout, which is not drawn without.
        """
        tensors, scales = self.tensors(model), None
        if step is not None and self.dropout > 0:
            drawn = Dropout(self.dropout, seed, step)
            inner = range(1, self.net.layers)
            scales = [batch.scale(drawn, k, self.net.widths[k], batch.targets.dtype) for k in inner]
        return self.net.outputs(tensors, batch, scales)


def stored(x: Tensor) -> Any:
    """Return features as layers take them, ndarray or csr_matrix of shape (n, F).

    Parameters
    ----------
    x : Tensor, shape (n, F)
        The features.
    """
    features = x.detach().cpu().numpy()
    return sp.csr_matrix(features) if np.count_nonzero(features) < _SPARSE * features.size else features


# ------------------------------------------------------------------------------------------------ what is covered


def is_model(module: nn.Module) -> bool:
    """Return whether a module is one of the models of torch_geometric that there are built-in layers for.

    Parameters
    ----------
    module : nn.Module
        Of that very class: a derived one may do something else.
    """
    return type(module).__module__ == _MODELS and type(module).__name__ in _KINDS


def built_in(module: Any, values: Mapping[str, Any]) -> BuiltIn | str:
    """Return a model of torch_geometric as a network of built-in layers, or in words why it is none.

    Parameters
    ----------
    module : nn.Module
        The model.
    values : dict
        Arguments that it is called with, by name.
    """
    if not is_model(module):
        return f"{type(module).__name__} is none of the models {', '.join(_KINDS)} of torch_geometric"
    kind, of_layer = _KINDS[type(module).__name__]
    act = _activation(module.act)
    heads = {getattr(conv, "heads", 1) for conv in module.convs}
    refused = (
        _of_model(module)
        or ("" if act or len(module.convs) == 1 else f"its activation is {type(module.act).__name__}")
        or next(filter(None, map(_of_layer, module.convs)), "")
        or ("" if len(heads) == 1 else "its layers have different numbers of heads")
        or (_of_heads(module) if kind == "gat" else _of_inner(module) if kind == "gin" else "")
        or _of_values(kind, values)
    )
    if refused:
        return refused
    outer = [conv.nn.channel_list[-1] if kind == "gin" else _width(conv) for conv in module.convs]
    widths = (values["x"].shape[1], *outer)
    return BuiltIn(GraphNet(kind, widths, heads.pop(), act or "relu"), float(module.dropout.p), of_layer)


def _width(conv: Any) -> int:
    """Return the number of columns that a layer returns."""
    return int(conv.out_channels) * (conv.heads if getattr(conv, "concat", False) else 1)


def _activation(act: Any) -> GraphActivation | None:
    plain = getattr(act, "alpha", 1.0) == 1.0 and getattr(act, "approximate", "none") == "none"
    return _ACTIVATIONS.get(type(act)) if plain else None


def _of_model(module: Any) -> str:
    """Return what the model has that the built-in networks do not."""
    if module.jk_mode is not None:
        return f"it has jk={module.jk_mode}"
    if any(type(norm) is not nn.Identity for norm in module.norms):
        return f"it has norm={type(module.norms[0]).__name__}"
    for part in module.modules():
        if hasattr(part, "parametrizations"):
            return "a parameter is parametrised"
        if any("hook" in name and isinstance(value, dict) and value for name, value in _hooks(part)):
            return "it has hooks"
    return ""


def _hooks(part: nn.Module) -> list[tuple[str, Any]]:
    """Return the tables of hooks that a module has, those of reading and writing its state excepted."""
    return [(name, value) for name, value in vars(part).items() if "state_dict" not in name]


def _of_layer(conv: Any) -> str:
    """Return what a layer has that one with the default options has not."""
    kind = type(conv)
    if not kind.__module__.startswith("torch_geometric.nn.conv.") or kind.__name__ == "GATv2Conv":
        return f"its layers are {kind.__name__}"
    with torch.random.fork_rng([]), torch.device("meta"):
        if hasattr(conv, "nn"):
            plain = kind(nn.Identity())
        elif hasattr(conv, "heads"):
            plain = kind(conv.in_channels, conv.out_channels, heads=conv.heads, concat=conv.concat)
        else:
            plain = kind(conv.in_channels, conv.out_channels)
    free = ("training", "initial_eps")
    for name, value in vars(plain).items():
        if name not in free and isinstance(value, _SIMPLE) and value != getattr(conv, name, None):
            return f"a layer has {name}={getattr(conv, name, None)}"
    names = [[n for n, _ in c.named_parameters() if not n.startswith("nn.") and n != "eps"] for c in (plain, conv)]
    return "" if names[0] == names[1] else f"a layer has the parameters {' '.join(names[1])}"


def _of_heads(module: Any) -> str:
    *hidden, last = module.convs
    if last.heads > 1 and last.concat:
        return "the heads of its last layer are not averaged"
    return "" if all(conv.concat or conv.heads == 1 for conv in hidden) else "heads of hidden layers are averaged"


def _of_inner(module: Any) -> str:
    for conv in module.convs:
        inner = conv.nn
        plain = inner.plain_last and not any(inner.dropout) and _activation(inner.act) == _activation(module.act)
        plain = plain and _activation(inner.act) is not None and len(set(inner.channel_list[1:])) == 1
        if not plain or len(inner.lins) != 2 or any(type(norm).__name__ != "Identity" for norm in inner.norms):
            return "networks inside of its layers are others than two linear maps with the activation between them"
        if any(lin.bias is None for lin in inner.lins):
            return "networks inside of its layers have no bias"
    return ""


def _of_values(kind: str, values: Mapping[str, Any]) -> str:
    """Return what is wrong with the arguments of the model."""
    x, weights = values["x"], values.get("edge_weight")
    if not isinstance(x, Tensor) or x.dim() != 2 or x.layout != torch.strided or not x.is_floating_point():
        return "x is no dense matrix of numbers"
    if kind == "gcn" and weights is not None and not bool((weights > 0).all()):
        return "edge_weight is not positive"
    return ""
