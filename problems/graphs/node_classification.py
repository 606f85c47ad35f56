"""Node classification by graph networks, decomposed by graph parts and coarsened by aggregation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import (
    FirstLayer,
    Hierarchy,
    Level,
    Objective,
    Price,
    SharedDecomposition,
    cast,
    check_choices,
    check_least,
    corrected_models,
    sampled,
)
from mldd.graph import Graph, check_part, edge_weights, partition
from mldd.loop import Problem
from mldd.problems.data import NORMALISED, GraphData, from_tensor, load_graph, unused_note, write
from mldd.problems.graphs.graph_levels import Ladder, kinds_of
from mldd.problems.graphs.graph_options import SHARE, Network, Spaces, check_validated, settings_of
from mldd.problems.graphs.local_graphs import LocalGraphs, unknowns
from mldd.problems.graphs.node_loss import NodeLoss, with_dropout
from mldd.problems.graphs.node_model import NodeModel
from mldd.problems.graphs.node_scores import NodeScores
from mldd.problems.nets import (
    Batch,
    GraphNet,
    Ints,
    MixedNet,
    Piece,
    Source,
    first_of_graph,
    stack,
    widened,
)
from mldd.problems.nets.layers import layer_of
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

_CHOICES = {
    "labels": ("train", "all"),
    "dtype": ("float64", "float32"),
    "evaluate": ("dtype", "float32", "bfloat16"),
}


@dataclass(frozen=True)
class NodeClassification(Problem):
    """Classify the nodes of a graph by a graph network, full batch.

    Parameters
    ----------
    name : str or GraphData
        A data set (`mldd.problems.data.datasets.NAMES`), a file, or the data themselves.
    network : Network
        Kind, width and number of layers, dropout and weight decay.
    split : int
        Number or seed of the split.
    seed : int
        Of dropout and of the partitions.
    spaces : Spaces
        What subdomains and coarse levels are made of.
    labels : {"train", "all"}
        Nodes in the loss: the training nodes, or all outside the test set.
    data : str, optional
        Folder of the data sets.
    reader : str
        Of a file, where its suffix does not say it: a suffix, ``file.py:function`` or ``package.module:function``.
    dtype : {"float64", "float32"}
        Of iterates, and of evaluations on coarse levels.
    evaluate : {"dtype", "float32", "bfloat16"}
        Precision of evaluating the loss and the local models; bfloat16 is that of dense products, all else in float32.
    device : {"cpu", "cuda", "auto"}
        As torch knows it: cpu, cuda, cuda:1.
    comm : Communicator
        The ranks that share the nodes.

    Raises
    ------
    ValueError
        An option that makes no sense.

    References
    ----------
    Kipf and Welling, arXiv:1609.02907, section 5.2 (the recipe).
    """

    name: str | GraphData = "cora"
    network: Network = Network()
    split: int = 0
    seed: int = 0
    spaces: Spaces = Spaces()
    labels: Literal["train", "all"] = "train"
    data: str | os.PathLike[str] | None = None
    reader: str = ""
    dtype: Literal["float64", "float32"] = "float64"
    evaluate: Literal["dtype", "float32", "bfloat16"] = "dtype"
    device: str = "cpu"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, _CHOICES)
        check_least(self, {"split": 0, "seed": 0})

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def graph_data(self) -> GraphData:
        """The data set."""
        return (
            self.name
            if isinstance(self.name, GraphData)
            else load_graph(self.name, data=self.data, split=self.split, reader=self.reader)
        )

    @property
    def graph(self) -> Graph:
        """The graph, without weights."""
        return self.graph_data.graph

    @cached_property
    def net(self) -> GraphNet:
        """The network."""
        data = self.graph_data
        attributes = len(layer_of(self.network.model).attributes(data.graph))
        return self.network.made(data.features.shape[1], data.classes, attributes)

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def labelled(self) -> Tensor:
        """Nodes in the loss, shape (n,), bool."""
        data = self.graph_data
        return data.train if self.labels == "train" else ~data.test & (data.labels >= 0)

    @cached_property
    def _one_hot(self) -> Any:
        """Labels of the nodes in the loss, zero rows for the others, shape (n, C)."""
        data = self.graph_data
        rows = torch.nn.functional.one_hot(data.labels.clamp(min=0), data.classes).double()
        return (rows * self.labelled[:, None]).numpy()

    @cached_property
    def source(self) -> Source:
        """Operator, features and targets of the whole graph; the loss is the mean over labelled nodes."""
        data = self.graph_data
        layer, targets = layer_of(self.network.model), self._one_hot / int(self.labelled.sum())
        operator, attributes = layer.operator(data.graph, layer.weightable), layer.attributes(data.graph)
        return Source.of(self.network.model, operator, from_tensor(data.features), targets, attributes)

    def _own(self, outputs: Ints, propagated: bool | None = None) -> Batch:
        return self._evaluated([self.source.piece(outputs, self.network.layers, propagated=propagated)], single=True)

    def _evaluated(self, pieces: Sequence[Piece], single: bool = False) -> Batch:
        """Return a batch in the precision of evaluations."""
        batch = stack(pieces, single=single, dtype=self._low, device=self._kind["device"])
        return widened(batch) if self.evaluate == "bfloat16" else batch

    @property
    def _low(self) -> torch.dtype:
        return torch.float32 if self.evaluate != "dtype" else getattr(torch, self.dtype)

    @cached_property
    def _net(self) -> GraphNet:
        """The network as it is evaluated."""
        own = {f.name: getattr(self.net, f.name) for f in fields(self.net)}
        return MixedNet(**own) if self.evaluate == "bfloat16" else self.net

    @cached_property
    def _nodes(self) -> Tensor:
        """Nodes of this rank, shape (n,), bool."""
        if self.comm.ranks == 1:
            return torch.ones(self.graph.nodes, dtype=torch.bool)
        return partition(self.graph, self.comm.ranks, seed=self.seed) == self.comm.rank

    @property
    def _outputs(self) -> Ints:
        """Labelled nodes that this rank evaluates."""
        mine: Ints = (self.labelled & self._nodes).nonzero().flatten().numpy()
        return mine

    def _share(self, batch: Batch, net: GraphNet | None = None) -> float:
        """Cost of evaluating `batch` over that of the fine objective on a single rank."""
        return batch.work((net or self.net).widths) / self._work

    @cached_property
    def _work(self) -> float:
        batch = self._samples
        if self.comm.ranks > 1:
            batch = self._own(self.labelled.nonzero().flatten().numpy(), batch.propagated)
        return batch.work(self.net.widths, self.network.dropout > 0)

    @cached_property
    def _batch(self) -> Batch:
        return self._own(self._outputs)

    @cached_property
    def _samples(self) -> Batch:
        """What a run evaluates: features with dropout cannot be propagated beforehand."""
        anew = self.network.dropout > 0 and self._batch.propagated
        return self._own(self._outputs, propagated=False) if anew else self._batch

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _plain(self) -> NodeLoss:
        """The loss without dropout, at the price of what a run evaluates."""
        price = Price(self._samples.work(self.net.widths, self.network.dropout > 0) / self._work)
        return NodeLoss(self._net, self._batch, self.network.decay, price, self.comm)

    @cached_property
    def _objective(self) -> Objective:
        return (
            with_dropout(self._plain, self._samples, self.network.dropout, self.seed)
            if self.network.dropout
            else self._plain
        )

    def objective(self, sample: int | None = None) -> Any:
        """Return the loss; with dropout it offers ``sample(step)``, and `sample` asks for one of these."""
        f = self._cast(self._objective)
        return f if sample is None else sampled(f, sample)

    def _cast(self, f: Objective) -> Objective:
        return cast(f, self._low, self._kind["dtype"])

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self.net.initial(seed).to(**self._kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss and its models on coarser levels, as `coarsen` says: see `Ladder`.

        Coarse graphs and fewer data share the parameters of the fine network. Coarse models have no dropout and are
        evaluated in `dtype`, all of them by every rank.

        Raises
        ------
        ValueError
            No level, or more than there are coarser problems.
        """
        ladder = self._ladder
        if not 1 <= levels <= ladder.most + 1:
            raise ValueError(
                f"`levels` must be in 1..{ladder.most + 1} for coarsen={self.spaces.coarsen} and a graph of "
                f"{self.graph_data.graph.nodes} nodes, got {levels}"
            )
        made = [Level(self.objective())]
        for rung in ladder.rungs(levels - 1, **self._kind):
            batch = stack([rung.piece], single=True, **self._kind)
            f = NodeLoss(rung.net, batch, rung.decay, Price(self._share(batch, rung.net), fine=False))
            made.append(Level(f, rung.transfer, f.price.gradient))
        return Hierarchy(tuple(made))

    @cached_property
    def _ladder(self) -> Ladder:
        return Ladder(
            kinds_of(self.spaces.coarsen),
            self.graph_data.graph,
            self.source,
            self.net,
            self.network.decay,
            self.graph_data.labels.numpy(),
            self.labelled.numpy(),
            clusters=self._clusters,
            method=self.spaces.clustering,
            kept=self.spaces.kept,
            seed=self.seed,
        )

    @property
    def _clusters(self) -> int:
        n = self.graph_data.graph.nodes
        return min(n, self.spaces.clusters or max(self.graph_data.classes, round(SHARE * n)))

    def first_layer(self) -> FirstLayer:
        """Return the inputs of the first layer at the nodes of this rank, without dropout."""
        terms, mine = self.source.terms, self._nodes.nonzero().flatten().numpy()
        if self.comm.ranks > 1:
            terms = tuple(term[mine] for term in terms)
        return first_of_graph(self.net, terms, self._work, self.comm.sum)

    # -------------------------------------------------------------------------------- subdomains

    def parts(self, parts: int) -> Tensor:
        """Return the part of every node, shape (n,), by `spaces.partition`: edges of dissimilar nodes are cut first.

        Parameters
        ----------
        parts : int
            Number of parts.
        """
        graph = self.graph_data.graph
        weighted = Graph(graph.indptr, graph.indices, edge_weights(graph, self.graph_data.features))
        return partition(weighted, parts, self.spaces.partition, seed=self.seed)

    def local_batch(
        self, part: Tensor, chosen: Sequence[int], overlap: int = 0, mask: Tensor | None = None
    ) -> NodeLoss:
        """Return the local losses of the `chosen` parts as one batched objective of (p, N), without correction.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            The part of every node.
        chosen : sequence of int
            A part may occur several times.
        overlap : int
            Layers of nodes that are added to every part.
        mask : Tensor, shape (p, N), optional
            Parameters that every member updates.
        """
        unique = sorted(set(chosen))
        local = "own" if self.spaces.subdomains == "parameters" else self.spaces.local
        made = self._local_graphs.of(local, part, unique, overlap, self._one_hot)
        pieces = dict(zip(unique, made, strict=True))
        batch = self._evaluated([pieces[k] for k in chosen])
        price = Price(self._share(batch), fine=False)
        return NodeLoss(self._net, batch, self.network.decay, price, mask=mask)

    @cached_property
    def _local_graphs(self) -> LocalGraphs:
        return LocalGraphs(self.graph, self.source, self.network.layers, self.spaces, self._clusters, self.seed)

    def decomposition(
        self, parts: int | Tensor, overlap: int = 0, comm: Communicator | None = None
    ) -> SharedDecomposition:
        """Return the decomposition into `parts` of the graph, of the parameters, or of both (`subdomains`).

        Local models are first-order corrected: their gradient at the current iterate is the global one.

        Parameters
        ----------
        parts : int or LongTensor, shape (n,)
            Number of parts, or the part of every node: a partition from elsewhere, or
            `mldd.graph.partitioning.repartition` between two runs of a training.
        overlap : int
            Layers (of nodes, or of the network) that are added to each part.
        comm : Communicator, optional
            The ranks that share the subdomains, the problem's own by default.

        Raises
        ------
        ValueError
            More parts than nodes or layers, fewer subdomains than ranks, a negative overlap.
        """
        comm = self.comm if comm is None else comm
        part = parts if isinstance(parts, Tensor) else None
        parts = check_part(self.graph, parts, filled=True) if isinstance(parts, Tensor) else parts
        for name, least, given in (("parts", 1, parts), ("overlap", 0, overlap)):
            if given < least:
                raise ValueError(f"`{name}` must be >= {least}, got {given}")
        layout = self.net.layout
        owner, mask, part_of = unknowns(self.spaces.subdomains, layout, parts, overlap, self._kind["device"])
        total = len(part_of)
        if total < comm.ranks:
            least = -(-comm.ranks // (total // parts))
            raise ValueError(f"`parts` must be >= {least} for {comm.ranks} ranks, got {parts}")
        mine = comm.share(total)
        by_parameters = self.spaces.subdomains == "parameters"
        # Every subdomain of the parameters reads the whole graph.
        nodes = torch.zeros(self.graph.nodes, dtype=torch.int64) if by_parameters else part
        owners, layers = self.parts(parts) if nodes is None else nodes, 0 if by_parameters else overlap

        @cache
        def losses(chosen: range) -> Objective:
            rows = None if mask is None else mask[chosen.start : chosen.stop]
            return self._cast(self.local_batch(owners, [part_of[k] for k in chosen], layers, rows))

        build = corrected_models(lambda decomposition, f: losses(decomposition.local))
        losses(mine)  # here, where bad parts are refused, and outside of any clock
        shares = None if mask is not None else self._local_graphs.shares(owners, parts, layers, self.labelled)
        device = self._kind["device"]
        return SharedDecomposition(
            layout.size, total, build, owner, mine, mask, blocks=layout.slices, device=device, shares=shares
        )

    # -------------------------------------------------------------------------------- what the user sees

    @cached_property
    def _whole(self) -> Batch:
        piece = self.source.piece(np.arange(self.graph_data.graph.nodes), self.network.layers)
        return stack([piece], single=True, **self._kind)

    def logits(self, x: Tensor) -> Tensor:
        """Return the outputs at all nodes without dropout, shape (n, C).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters.
        """
        with torch.no_grad():
            return self.net.outputs(self.net.layout.views(x), self._whole)

    @property
    def _scores(self) -> NodeScores:
        return NodeScores.of(self.graph_data, self.graph_data.labels, self.graph_data.metric)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy over the validation nodes, without dropout."""
        check_validated(self.labels)
        return self._scores.validation(self.logits(x))

    def module(self, x: Tensor) -> NodeModel:
        """Return the network with these parameters, which classifies the nodes of any graph of the same features."""
        name = self.graph_data.name
        return NodeModel(self.net, x, name, name in NORMALISED)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        by_layers = self.spaces.subdomains == "parameters"
        return settings_of(solver, self.graph_data.name, len(self.net.layout.blocks) if by_layers else 0)

    def write_shards(self, part: Tensor, folder: str | os.PathLike[str]) -> None:
        """Write the graph into `folder`, cut by the part of every node, shape (n,): see `mldd.problems.data.write`."""
        write(self.graph_data, part, folder)

    def details(self) -> dict[str, Any]:
        """Return what was done to the data of a file, and what of it is not used."""
        graph = self.graph
        lost = layer_of(self.network.model).unused(graph.weights is not None, graph.edge_attributes is not None)
        notes = [*self.graph_data.notes, *unused_note(lost)]
        return {"notes": notes} if notes else {}

    def identity(self) -> str:
        """Return the checksum of the data."""
        return self.graph_data.digest

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the accuracies (and `test_auc` where that is the metric) of the network with parameters `x`."""
        return self._scores.metrics(self.logits(x))
