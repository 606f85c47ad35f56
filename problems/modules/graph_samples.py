"""Many graphs as samples: joined to batches by torch_geometric, with labels of the graphs or of their nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mldd.problems.modules.graph_checks import check_graphs
from mldd.problems.modules.one_graph import Task, names_in_order, names_of_arguments, takes_graph, task_of
from mldd.problems.modules.samples import is_plain, kept_of
from mldd.problems.modules.user_modules import check_uncached, explained

_AT_ONCE = 1024  # graphs that a network is called with together


def one_graph(data: Any) -> Any:
    """Return data that are one graph, or the graph in a data set of one; None for all else.

    Parameters
    ----------
    data : object
        Of any kind.

    Raises
    ------
    ValueError
        A graph with several kinds of nodes.
    """
    if _is_dataset(data) and hasattr(data, "edge_index") and len(data) == 1:  # as of torch_geometric: Planetoid
        return data[0]
    if hasattr(data, "node_types") and not _is_dataset(data):
        raise ValueError(
            f"`data` must have one kind of nodes and edges, got {type(data).__name__}; take data.to_homogeneous()"
        )
    return data if _is_graph(data) else None


def _is_graph(data: Any) -> bool:
    """Return whether data are a graph; a data set of several is none, though it shows their edges."""
    if isinstance(data, Mapping):
        return "edge_index" in data
    return not _is_dataset(data) and hasattr(data, "edge_index")


def are_graphs(data: Any) -> bool:
    """Return whether data are several graphs: a sequence or data set of them, or a loader of one.

    Parameters
    ----------
    data : object
        Of any kind.
    """
    if isinstance(data, DataLoader):
        return are_graphs(data.dataset)
    if isinstance(data, Mapping | Tensor | IterableDataset) or not (_is_dataset(data) or isinstance(data, Sequence)):
        return False
    with torch.random.fork_rng([]):  # a data set may draw what it gives
        return len(data) > 0 and _is_graph(data[0])


def _is_dataset(data: Any) -> bool:
    return isinstance(data, Dataset)


@dataclass(frozen=True, eq=False)
class GraphSamples:
    """Graphs that are taken by their numbers, and what a network is called with on a batch of them.

    The network is called by the names of the parameters of its ``forward``: fields of the graphs, ``batch`` (the graph
    of every node), ``ptr`` and ``batch_size``; or with the batch itself, where that is its only argument. It returns a
    row per graph, or one per node where every node has a label. The loss is the mean over all known labels: of -1 in
    classes and of NaN in numbers nothing is known.

    Parameters
    ----------
    graphs : tuple of torch_geometric.data.Data
        Of the same fields.
    names : tuple of str
        Arguments of the network, empty where it gets the batch itself.
    positional : bool
        Whether they are passed by position.
    batch : int
        Graphs of a batch of the loader that they came in, 0 where there was none.
    """

    graphs: tuple[Any, ...]
    names: tuple[str, ...]
    positional: bool = False
    batch: int = 0

    in_batches: ClassVar[bool] = False
    inputs: ClassVar[int] = 0
    units: ClassVar[str] = "graphs"

    @staticmethod
    def of(data: Any, net: nn.Module | None = None, inputs: Sequence[str] = ()) -> GraphSamples:
        """Return the graphs of data, all of which are read here.

        Parameters
        ----------
        data : sequence or data set of graphs, or loader of one
            ``Data`` of torch_geometric, or dicts of tensors.
        net : nn.Module, optional
            The network, where it is there already.
        inputs : sequence of str
            Fields that it takes, in the order of ``forward``; by default those that its parameters are named after.

        Raises
        ------
        ValueError
            Graphs of different fields, features that are not finite, a loader that leaves graphs out, an argument
            that they do not have, or a layer that keeps the edges of one of them.
        ImportError
            torch_geometric is missing.
        """
        count, size = None, 0
        if isinstance(data, DataLoader):
            if not is_plain(data):
                raise ValueError(
                    "a loader of graphs must take each of them once, got one with a sampler of its own; give the graphs"
                )
            count, data, size = kept_of(data), data.dataset, data.batch_size or 0
        graphs = tuple(_data(data[k]) for k in range(len(data) if count is None else count))
        check_graphs(graphs)
        if net is not None:
            check_uncached(net, "the others")
            inputs = tuple(inputs) or names_in_order(net)
        made = GraphSamples(graphs, (), bool(inputs), size)
        if net is None or (not inputs and takes_graph(net)):
            return made
        return replace(made, names=names_of_arguments(net, _fields(made.take(torch.arange(1))), tuple(inputs)))

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self.graphs)

    def take(self, rows: Tensor) -> Any:
        """Return the batch of some graphs.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Their numbers.
        """
        from torch_geometric.data import Batch

        return Batch.from_data_list([self.graphs[k] for k in rows.tolist()])

    def permuted(self, order: Tensor) -> GraphSamples:
        """Return the graphs in another order, or some of them.

        Parameters
        ----------
        order : Tensor, shape (n,), int64
            The number of every graph.
        """
        return replace(self, graphs=tuple(self.graphs[k] for k in order.tolist()))

    def to(self, like: Tensor) -> GraphSamples:
        """Return the graphs on the device of a tensor, floating point numbers in its precision.

        Parameters
        ----------
        like : Tensor
            Parameters of the network.
        """

        def moved(t: Tensor) -> Tensor:
            return t.to(like) if t.is_floating_point() else t.to(like.device)

        return replace(self, graphs=tuple(graph.clone().apply(moved) for graph in self.graphs))

    def arrays(self) -> Any:
        """Yield the fields as arrays of NumPy, for a checksum."""
        for graph in self.graphs:
            for _, value in sorted(graph.to_dict().items()):
                if isinstance(value, Tensor):
                    yield value.detach().cpu().numpy()

    def outputs(self, net: nn.Module, batch: Any) -> Tensor:
        """Return what a network returns for a batch, a row per label.

        Parameters
        ----------
        net : nn.Module
            The network.
        batch : torch_geometric.data.Batch
            Of graphs.

        Raises
        ------
        ValueError
            It returns something else than a tensor with a row per graph, or per node where these have the labels.
        """
        fields = _fields(batch)
        given = {name: fields[name] for name in self.names}
        with explained(net, given or (batch,)):
            if not self.names:
                made = net(batch)
            else:
                made = net(*given.values()) if self.positional else net(**given)
        rows = batch.num_nodes if self.of_nodes else batch.num_graphs
        fitting = {rows} if self.labelled else {rows, batch.num_nodes}
        if not isinstance(made, Tensor) or made.dim() == 0 or len(made) not in fitting:
            got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            what = "node" if self.of_nodes else "graph"
            raise ValueError(
                f"{type(net).__name__} must return a row for each of {rows} {what}s of a batch, got {got}; "
                + ("leave out the pooling" if self.of_nodes else "pool the nodes: global_mean_pool(x, batch)")
            )
        return made

    def predicted(self, net: nn.Module, inputs: int = 0) -> Tensor:
        """Return what a network returns for all graphs, one after the other.

        Parameters
        ----------
        net : nn.Module
            The network, in the mode it has.
        inputs : int
            Of no use: labels of graphs may always be missing.
        """
        return torch.cat([self.outputs(net, self.take(of)) for of in torch.split(torch.arange(len(self)), _AT_ONCE)])

    def targets(self, batch: Any) -> Tensor:
        """Return the labels of a batch; a column alone is dropped.

        Parameters
        ----------
        batch : torch_geometric.data.Batch
            Of graphs.
        """
        y: Tensor = batch.y
        return y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y

    @cached_property
    def of_nodes(self) -> bool:
        """Whether the labels are those of nodes.

        Raises
        ------
        ValueError
            Neither one label per graph nor one per node.
        """
        rows = [_rows(graph) for graph in self.graphs]
        if all(n in (0, 1) for n in rows):
            return False
        wrong = [k for k, graph in enumerate(self.graphs) if rows[k] != graph.num_nodes]
        if wrong:
            graph = self.graphs[wrong[0]]
            raise ValueError(
                f"`y` must have one row per graph, shape (1,) or (1, k), or one per node, got shape "
                f"{tuple(graph.y.shape)} in a graph of {graph.num_nodes} nodes; use y.view(1, -1)"
            )
        return True

    @cached_property
    def task(self) -> Task:
        """What is learned, by the labels of all graphs: classes, several labels each, or numbers.

        Raises
        ------
        ValueError
            Graphs without `y`.
        """
        if not self.labelled:
            raise ValueError(
                f"graphs must have labels y, got {' '.join(sorted(self.graphs[0].keys()))}; add them, or a loss"
            )
        y = self.targets(self.take(torch.arange(len(self))))
        return task_of({"y": y}, len(y))

    @property
    def labelled(self) -> bool:
        """Whether the graphs have labels."""
        return self.graphs[0].get("y") is not None

    def _known(self, targets: Tensor) -> Tensor:
        return targets >= 0 if self.task.kind == "classification" else ~targets.isnan()

    def _matched(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs in the shape of the labels, where these are no classes, and which labels are known."""
        if self.task.kind != "classification":
            outputs = outputs.reshape(targets.shape)
        return outputs, self._known(targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the known labels of a batch: what is taken where the user gives none.

        Parameters
        ----------
        outputs : Tensor, shape (m, ...)
            Of the network.
        targets : Tensor, shape (m,) or (m, k)
            Labels.
        """
        outputs, known = self._matched(outputs, targets)
        return self.task.mean(outputs, targets) if self._all_known else self.task.mean(outputs[known], targets[known])

    @cached_property
    def _all_known(self) -> bool:
        return bool(self._known(self.targets(self.take(torch.arange(len(self))))).all())

    @cached_property
    def weights(self) -> Tensor:
        """Number of known labels of every graph, shape (n,): its share in the mean."""
        _ = self.task  # where graphs without labels are refused
        return torch.tensor([float(self._known(graph.y).sum()) for graph in self.graphs], dtype=torch.float64)

    def summed(self, weights: Tensor | None) -> Tensor | None:
        """Return the weights of graphs, given those of their labels.

        Parameters
        ----------
        weights : Tensor, shape (m,), or None
            Of the labels of all graphs; where None says nothing of them, every label counts alike.
        """
        rows = torch.tensor([_rows(graph) for graph in self.graphs])
        if weights is None:
            return rows.double() if self.of_nodes else None
        graph = torch.repeat_interleave(torch.arange(len(rows)), rows)
        return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, graph, weights)

    @cached_property
    def _first(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers of nodes and of edges of the graphs, and the sums of those before them."""
        nodes = torch.tensor([graph.num_nodes for graph in self.graphs])
        edges = torch.tensor([graph.num_edges for graph in self.graphs])
        return nodes, edges, nodes.cumsum(0) - nodes, edges.cumsum(0) - edges

    @cached_property
    def _is_loop(self) -> Tensor:
        """Which edges of all graphs lead from a node to itself."""
        return torch.cat([(graph.edge_index[0] == graph.edge_index[1]).cpu() for graph in self.graphs])

    def numbers(self, rows: Tensor) -> dict[int, Tensor]:
        """Return numbers of graphs, edges and nodes of a batch among all of them, by how many there are.

        Edges that are no loops, followed by a loop at every node, as attention layers have them, have numbers, too.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            The graphs.
        """
        count_nodes, count_edges, first_node, first_edge = self._first
        nodes, edges = _runs(first_node[rows], count_nodes[rows]), _runs(first_edge[rows], count_edges[rows])
        with_loops = torch.cat([edges[~self._is_loop[edges]], int(count_edges.sum()) + nodes])
        return {len(with_loops): with_loops, len(rows): rows, len(edges): edges, len(nodes): nodes}

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return accuracy and area under the ROC curve (of two classes, or several labels), or root mean square error.

        Parameters
        ----------
        outputs : Tensor, shape (m, ...)
            Of the network.
        targets : Tensor, shape (m,) or (m, k)
            Labels.
        """
        outputs, known = self._matched(outputs, targets)
        if not bool(known.any()):
            return {}
        right = self.task.scores(outputs[known], targets[known])
        found = {key: value / int(known.sum()) for key, value in right.items()}
        if "mse" in found:
            return {"rmse": found["mse"] ** 0.5}
        return found | _auc(outputs, targets, known)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the graphs is not used, in a sentence."""
        if not self.names:
            return ()
        lost = sorted(set(self.graphs[0].keys()) - {*self.names, "y", "num_nodes"})
        return (f"not used: {', '.join(lost)}",) if lost else ()


def _data(graph: Any) -> Any:
    """Return a graph as torch_geometric's Data."""
    from torch_geometric.data import Data

    if isinstance(graph, Mapping):
        return Data(**{key: value for key, value in graph.items() if value is not None})
    if hasattr(graph, "node_types"):
        raise ValueError(
            f"graphs must have one kind of nodes, got {type(graph).__name__}; take to_homogeneous() of each"
        )
    y = graph.get("y")
    if y is not None and not isinstance(y, Tensor):
        graph = graph.clone()
        graph.y = torch.as_tensor(y)
    return graph


def _rows(graph: Any) -> int:
    """Return how many labels a graph has."""
    y = graph.y
    return len(y) if isinstance(y, Tensor) and y.dim() else 1


def _fields(batch: Any) -> dict[str, Any]:
    """Return what a network may be called with."""
    return {**batch.to_dict(), "batch": batch.batch, "ptr": batch.ptr, "batch_size": batch.num_graphs}


def _runs(first: Tensor, count: Tensor) -> Tensor:
    """Return ``first[0], first[0] + 1, ...``, as many as `count` says, and so on."""
    before = count.cumsum(0) - count
    return torch.repeat_interleave(first - before, count) + torch.arange(int(count.sum()))


def _auc(outputs: Tensor, targets: Tensor, known: Tensor) -> dict[str, float]:
    """Return the mean area under the ROC curve over the labels that have both values among the known ones."""
    if targets.dim() == 1:
        if outputs.shape[-1] != 2:
            return {}
        outputs, targets, known = (outputs[:, 1] - outputs[:, 0])[:, None], targets[:, None], known[:, None]
    made, wanted, there = (t.detach().cpu().numpy() for t in (outputs.double(), targets, known))
    areas = [
        roc_auc_score(wanted[there[:, k], k] > 0.5, made[there[:, k], k])
        for k in range(wanted.shape[1])
        if len(np.unique(wanted[there[:, k], k] > 0.5)) == 2
    ]
    return {"auc": float(np.mean(areas))} if areas else {}
