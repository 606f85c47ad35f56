"""Arguments that a network on a graph is called with: on the whole graph, on a part of it, and on an aggregated one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mldd.graph import Graph
from mldd.problems.modules import explained, first_parameter, initialise
from mldd.problems.modules.one_graph.argument_names import names_in_order, names_of_arguments, takes_graph
from mldd.problems.modules.one_graph.graph_task import READ

Of = Literal["edges", "nodes", "index", "all"]  # what an argument has a row for
Ints = NDArray[np.int64]
_WEIGHTS = "edge_weight"
_NO_INPUT = frozenset(READ) - {"edge_index"}


def fields_of_data(data: Any) -> dict[str, Any]:
    """Return the fields of a graph by name.

    Parameters
    ----------
    data : torch_geometric.data.Data, or mapping
        With ``edge_index``, ``x`` and what else the network and its loss need.

    Raises
    ------
    ValueError
        It is neither, has several kinds of nodes, or lacks `edge_index`.
    """
    if not isinstance(data, Mapping):
        if not hasattr(data, "to_dict") or hasattr(data, "node_types"):
            raise ValueError(
                f"`data` must be a torch_geometric Data or a dict of tensors, got {type(data).__name__}; for one with "
                "several kinds of nodes take to_homogeneous()"
            )
        data = data.to_dict()
    found = {str(key): value for key, value in data.items() if value is not None}
    if "edge_index" not in found:
        raise ValueError(f"`data` must have edge_index of shape (2, E), got {' '.join(found) or 'nothing'}")
    edges = found["edge_index"]
    if not isinstance(edges, Tensor) or edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        what = f"{edges.dtype} of shape {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(
            f"`edge_index` must be a tensor of int64 and shape (2, E), got {what}; take .long(), .T or torch.from_numpy"
        )
    return found


def nodes_of(fields: Mapping[str, Any]) -> int:
    """Return the number of nodes of a graph.

    Parameters
    ----------
    fields : dict
        Of the graph, by name.

    Raises
    ------
    ValueError
        An edge to a node that is not there.
    """
    x, edges = fields.get("x"), fields["edge_index"]
    highest = int(edges.max()) + 1 if edges.numel() else 0
    nodes = int(len(x) if isinstance(x, Tensor) else fields.get("num_nodes", highest))
    if highest > nodes or (edges.numel() and int(edges.min()) < 0):
        raise ValueError(f"`edge_index` must have nodes 0..{nodes - 1}, got {int(edges.min())}..{highest - 1}")
    return nodes


@dataclass(frozen=True, eq=False)
class Arguments:
    """What a network is called with on a graph, and how that is cut to a part and aggregated.

    Parameters
    ----------
    names : tuple of str
        Of the fields, in the order of the parameters of ``forward``.
    fields : dict
        Of the graph, by name.
    by : {"name", "position", "graph"}
        How the network takes them: by the names of its parameters, in their order, or as fields of a
        ``torch_geometric.data.Data``.
    """

    names: tuple[str, ...]
    fields: Mapping[str, Any]
    by: Literal["name", "position", "graph"] = "name"

    @property
    def edge_index(self) -> Tensor:
        """Ends of the edges, shape (2, E): messages go from the first to the second."""
        edges: Tensor = self.fields["edge_index"]
        return edges

    @cached_property
    def nodes(self) -> int:
        """Number n of nodes."""
        return nodes_of(self.fields)

    @cached_property
    def graph(self) -> Graph:
        """Neighbours in either direction, without weights; parts and clusters are made of it."""
        return Graph.from_edges(self.edge_index, self.nodes)

    def of(self, name: str) -> Of:
        """Return what an argument has a row for.

        Parameters
        ----------
        name : str
            Of the argument.
        """
        value = self.fields[name]
        if name == "edge_index":
            return "index"
        if not isinstance(value, Tensor) or value.dim() == 0:
            return "all"
        if name.startswith("edge_") and len(value) == self.edge_index.shape[1]:
            return "edges"
        if len(value) == self.nodes:
            return "nodes"
        return "edges" if len(value) == self.edge_index.shape[1] else "all"

    def call(self, net: nn.Module, values: Mapping[str, Any]) -> Tensor:
        """Return the outputs of a network.

        Parameters
        ----------
        net : nn.Module
            The network.
        values : dict
            Its arguments by name.

        Raises
        ------
        ValueError
            It cannot be called with them, or does not return one tensor.
        """
        with explained(net, values):
            made = self._called(net, values)
        if not isinstance(made, Tensor):
            raise ValueError(f"{type(net).__name__} must return one tensor, got {type(made).__name__}; wrap it")
        return made

    def outputs(self, net: nn.Module) -> Tensor:
        """Return the outputs of a network on the whole graph, a row per node.

        Parameters
        ----------
        net : nn.Module
            The network.

        Raises
        ------
        ValueError
            It cannot be called with the arguments, or returns more or fewer rows.
        """
        made = self.call(net, self.whole)
        if made.dim() == 0 or len(made) != self.nodes:
            got = f"shape {tuple(made.shape)}"
            raise ValueError(
                f"{type(net).__name__} must return a row for each of {self.nodes} nodes, got {got}; "
                "leave out the pooling, or give a list of graphs with a label each: [data]"
            )
        return made

    def _called(self, net: nn.Module, values: Mapping[str, Any]) -> Any:
        if self.by == "position":
            return net(*(values[name] for name in self.names))
        if self.by == "name":
            return net(**values)
        from torch_geometric.data import Data  # for networks that ask for it

        counted = next((len(values[name]) for name in self.names if self.of(name) == "nodes"), self.nodes)
        return net(Data(**values, num_nodes=counted))

    def alike(self, other: Arguments) -> Arguments:
        """Return the arguments on another graph, of the same names as these ones.

        Parameters
        ----------
        other : Arguments
            What the network would be called with there.

        Raises
        ------
        ValueError
            A field is missing that the network was trained with.
        """
        lacking = [name for name in self.names if name not in other.fields]
        if self.by != "graph" and lacking:
            raise ValueError(
                f"`data` must have {', '.join(self.names)} as in the training, got {' '.join(other.fields)}; add "
                f"{', '.join(lacking)}"
            )
        return other if self.by == "graph" else replace(other, names=self.names)

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The arguments on the whole graph."""
        return {name: self.fields[name] for name in self.names}

    def unused(self, read: Collection[str]) -> list[str]:
        """Return the names of tensors that the network is not called with.

        Parameters
        ----------
        read : collection of str
            Names of those that are used otherwise.
        """
        fields = self.fields.items()
        return [key for key, value in fields if key not in {*self.names, *read} and isinstance(value, Tensor)]

    def reached(self, nodes: Tensor, hops: int) -> Tensor:
        """Return the nodes that the outputs at some nodes depend on, these first, shape (m,), int64.

        Parameters
        ----------
        nodes : Tensor, shape (k,), int64
            Where outputs are wanted, without repetition.
        hops : int
            Edges that a message may travel.
        """
        inside = np.zeros(self.nodes, dtype=bool)
        inside[nodes.cpu().numpy()] = True
        first = inside.copy()
        for _ in range(hops):
            grown = self.grown(inside)
            if (grown == inside).all():
                break
            inside = grown
        return torch.cat([nodes.cpu(), torch.from_numpy(np.flatnonzero(inside & ~first))])

    def grown(self, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return some nodes with those that send to them.

        Parameters
        ----------
        inside : ndarray, shape (n,), bool
            The nodes.
        """
        grown: NDArray[np.bool_] = inside | (self._incoming @ inside > 0)
        return grown

    @cached_property
    def _incoming(self) -> Any:
        """Matrix with an entry (i, j) where i is sent to j: a node that sends into a set of nodes reaches it."""
        row, column = self.edge_index.cpu().numpy()
        ones = np.ones(len(row), dtype=np.float32)
        return sp.csr_matrix((ones, (row, column)), shape=(self.nodes, self.nodes))

    def part(self, nodes: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Return the arguments on the graph that some nodes span, and the numbers of its edges.

        Parameters
        ----------
        nodes : Tensor, shape (m,), int64
            In the order that they get.
        """
        device = self.edge_index.device
        place = torch.full((self.nodes,), -1, dtype=torch.int64, device=device)
        place[nodes.to(device)] = torch.arange(len(nodes), device=device)
        ends = place[self.edge_index]
        kept = (ends >= 0).all(0).nonzero().flatten()
        return self.taken(nodes.to(device), kept, ends[:, kept]), kept

    def taken(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> dict[str, Any]:
        """Return the arguments on some nodes and edges.

        Parameters
        ----------
        nodes : Tensor, shape (m,), int64
            Numbers of the nodes.
        edges : Tensor, shape (e,), int64
            Numbers of the edges.
        ends : Tensor, shape (2, e), int64
            Their ends among these nodes.
        """
        rows = {"nodes": nodes, "edges": edges}
        values = {}
        for name in self.names:
            value, of = self.fields[name], self.of(name)
            values[name] = ends if of == "index" else value if of == "all" else value[rows[of]]
        return values

    def aggregated(self, labels: Ints) -> dict[str, Any]:
        """Return the arguments on the graph of clusters: features are means, edges between clusters are merged.

        The weight of an edge is the sum of those that it stands for, over the size of the cluster that receives: the
        mean over its nodes of what they receive. Other attributes are means. Edges between clusters of one node stay
        as they are; edges inside of larger clusters vanish where the network takes no weights.

        Parameters
        ----------
        labels : ndarray, shape (n,), int64
            Cluster of every node.
        """
        of_node = torch.from_numpy(np.ascontiguousarray(labels)).to(self.edge_index.device)
        count = int(labels.max()) + 1
        size = torch.bincount(of_node, minlength=count)
        group, ends = self._merged(of_node, size, count)
        values: dict[str, Any] = {}
        for name in self.names:
            value, of = self.fields[name], self.of(name)
            if of == "index":
                values[name] = ends
            elif of == "nodes":
                values[name] = _means(value, of_node, count)
            elif of == "edges":
                kept = group >= 0
                totals = _sums(value[kept], group[kept], ends.shape[1])
                if name == _WEIGHTS:
                    per = size[ends[1]].to(totals.dtype)
                else:
                    per = torch.bincount(group[kept], minlength=ends.shape[1]).to(totals.dtype)
                values[name] = totals / per.view(-1, *[1] * (totals.dim() - 1))
            else:
                values[name] = value
        return values

    def _merged(self, of_node: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the merged edge of every edge, -1 for those that vanish, and the ends of the merged ones."""
        ends = of_node[self.edge_index]
        single = (size[ends] == 1).all(0)
        gone = (ends[0] == ends[1]) & ~single & (_WEIGHTS not in self.names)
        key = ends[0] * count + ends[1]
        alone = torch.arange(len(key), device=key.device) + count * count  # a key of its own
        key = torch.where(single, alone, key)
        found, group = torch.unique(key[~gone], return_inverse=True)
        merged = torch.full_like(key, -1)
        merged[~gone] = group
        first = torch.empty(2, len(found), dtype=torch.int64, device=key.device)
        first[:, group] = ends[:, ~gone]
        return merged, first


def _sums(values: Tensor, group: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, group, values)


def _means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the means of rows by group; of numbers of classes or types, which have none, the value of one member."""
    if not values.dtype.is_floating_point:
        made = values.new_zeros(count, *values.shape[1:])
        made[group] = values
        return made
    size = torch.bincount(group, minlength=count).to(values.dtype)
    return _sums(values, group, count) / size.view(-1, *[1] * (values.dim() - 1))


def arguments_of(net: nn.Module, data: Any, given: Sequence[str], device: torch.device) -> Arguments:
    """Return what a network is called with on a graph, on a device and in the network's precision.

    Parameters
    ----------
    net : nn.Module
        The network.
    data : torch_geometric.data.Data, or mapping
        The graph.
    given : sequence of str
        Fields that the user has said, in the order of ``forward``.
    device : torch.device
        Where the tensors go.

    Raises
    ------
    ValueError
        The data lack a field, or have features that are not finite.
    """
    fields = fields_of_data(data)
    nodes_of(fields)
    dtype = first_parameter(net).dtype
    moved = {key: _to(value, device, dtype) for key, value in fields.items()}
    given = given or names_in_order(net)
    if not given and takes_graph(net):
        dense = [name for name in sorted(moved.keys() - _NO_INPUT) if not _is_sparse(moved[name])]
        made = Arguments(tuple(dense), moved, "graph")
    else:
        made = Arguments(names_of_arguments(net, moved, given), moved, "position" if given else "name")
    if sparse := [name for name in made.names if _is_sparse(moved[name])]:
        raise ValueError(
            f"`{sparse[0]}` of {type(net).__name__} must be no sparse matrix, got one; call layers with edge_index, "
            "and make features dense by to_dense()"
        )
    for name in made.names:
        _check_finite(name, made.of(name), moved[name])
    initialise(net, lambda: made.call(net, made.whole))
    return made


def _check_finite(name: str, of: Of, value: Any) -> None:
    """Refuse what is no number among the arguments of a network: all outputs that depend on it would be none."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point or bool(value.isfinite().all()):
        return
    where = int((~value.isfinite()).nonzero()[0, 0]) if value.dim() else 0
    what = {"nodes": "node", "edges": "edge"}.get(of, "entry")
    raise ValueError(
        f"`{name}` must be finite, got another value at {what} {where}; fill it in, or leave the {what} out"
    )


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a tensor on the device, floating point numbers in the precision of the network."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.dtype.is_floating_point else value.to(device)
