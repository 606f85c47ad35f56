"""Node classification by networks of their own: one per subdomain of the graph, blended, and one for the whole.

The outputs are ``z_i = sum_k w_k(i) N_k(i; x_k) + C(i; x_c)``: weights w_k that sum to one at every node and are
positive on part k of the graph and on some layers of nodes around it, a graph network N_k with parameters x_k per part,
which reads the nodes that its outputs depend on and no others, and a network C for what all parts have in common, on
the aggregated graph or on the whole. It is for graphs what `mldd.problems.pinns.window_model` is for equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from mldd.algebra import (
    Corrected,
    Decomposition,
    Hierarchy,
    Level,
    Objective,
    Price,
    Subdomain,
    check_choices,
    check_least,
    contiguous,
    on_this_rank,
)
from mldd.graph import Graph, grow
from mldd.loop import Problem
from mldd.problems.graphs.blended_loss import BlendedLoss, LocalBlends, NetworkGroup, blended_with_dropout
from mldd.problems.graphs.graph_levels import clustered
from mldd.problems.graphs.node_classification import NodeClassification
from mldd.problems.nets import GraphNet, Ints, Piece, Sparse
from mldd.ranks import Communicator


def partition_of_unity(graph: Graph, part: Tensor, overlap: int) -> Any:
    r"""Return weights that sum to one at every node and fade with the hop distance.

    With r_k(i) the number of hops from node i out of part k widened by `overlap` layers, at most m = 2 overlap + 1,

        w_k(i) = b_k(i) / sum_j b_j(i),    b_k(i) = (1 - cos(pi r_k(i) / m)) / 2.

    Parameters
    ----------
    part : Tensor, shape (n,), int64
        The part of every node, 0..p-1.
    overlap : int
        Layers of nodes that are added to every part; 0 for the indicators of the parts.
    graph : Graph
        Its hops are the distance.

    Returns
    -------
    csc_matrix, shape (n, p)

    Raises
    ------
    ValueError
        A part without nodes, or a negative overlap.

    References
    ----------
    The window functions of Moseley, Markham and Nissen-Meyer, arXiv:2107.07871, are its model in space; cosines as in
    Dolean, Heinlein, Mishra and Moseley, arXiv:2306.05486.
    """
    if overlap < 0:
        raise ValueError(f"`blend` must be >= 0, got {overlap}")
    parts, most = int(part.max()) + 1, 2 * overlap + 1
    inside = grow(graph, torch.nn.functional.one_hot(part, parts).bool(), overlap)
    hops = inside.to(torch.int16)
    near = ~inside
    for _ in range(most - 1):
        near = grow(graph, near, 1)
        hops += ~near
    rows, columns = inside.numpy().nonzero()
    bumps = (1.0 - np.cos(math.pi / most * hops.numpy()[rows, columns])) / 2
    totals = np.bincount(rows, bumps, graph.nodes)
    return sp.csc_matrix((bumps / totals[rows], (rows, columns)), shape=(graph.nodes, parts))


@dataclass(frozen=True)
class OwnNetworks:
    """Networks of the parts of a graph.

    Parameters
    ----------
    networks : int
        Parts of the graph with a network each.
    blend : int
        Layers of nodes that neighbouring parts share.
    coarse : {"graph", "whole", "none"}
        Where the network for the global signal lives: on the graph aggregated to `clusters` nodes, on the whole graph,
        or nowhere.
    coarse_hidden : int
        Its width; 0 for half of that of the others.

    Raises
    ------
    ValueError
        Values out of range.
    """

    networks: int = 4
    blend: int = 1
    coarse: Literal["graph", "whole", "none"] = "graph"
    coarse_hidden: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"coarse": ("graph", "whole", "none")})
        check_least(self, {"networks": 1, "blend": 0, "coarse_hidden": 0})


@dataclass(frozen=True)
class SubdomainNetworks(NodeClassification):
    """Node classification by one network per part of the graph, blended, and one for the global signal.

    The unknowns are the parameters of all networks, one after the other, those of the coarse one last. Decompositions
    are of the networks: every subdomain updates its own, the outputs of the others being fixed. On several ranks each
    evaluates its share of the networks, and the blended outputs at all nodes of the loss are summed in one collective.

    Parameters
    ----------
    own : OwnNetworks
        Number, overlap and sizes of the networks.
    spaces.local, spaces.subdomains, spaces.coarsen, spaces.grades
        Have no meaning here and stay as they are. All others are those of `NodeClassification`, `network.decay` is
        that of every network.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    own: OwnNetworks = OwnNetworks()

    module = Problem.module  # type: ignore[assignment]  # one network per part, and none of the whole

    def __post_init__(self) -> None:
        """Refuse options that have no meaning here."""
        super().__post_init__()
        for name, only in (("local", "composite"), ("subdomains", "graph"), ("coarsen", "graph"), ("grades", 1)):
            if getattr(self.spaces, name) != only:
                raise ValueError(
                    f"`{name}` must be left out for networks of their own, got {getattr(self.spaces, name)!r}"
                )

    # -------------------------------------------------------------------------------- networks and where they count

    @cached_property
    def coarse_net(self) -> GraphNet | None:
        """The network for the global signal."""
        hidden = self.own.coarse_hidden or self.network.heads * max(1, self.network.hidden // (2 * self.network.heads))
        widths = (self.net.widths[0], *[hidden] * (self.network.layers - 1), self.net.widths[-1])
        return None if self.own.coarse == "none" else replace(self.net, widths=widths)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of unknowns of every network."""
        coarse = [self.coarse_net.layout.size] if self.coarse_net else []
        return (*[self.net.layout.size] * self.own.networks, *coarse)

    @cached_property
    def unity(self) -> Any:
        """Weights of the parts at all nodes, shape (n, networks), csc_matrix."""
        return partition_of_unity(self.graph_data.graph, self.parts(self.own.networks), self.own.blend)

    @cached_property
    def _labelled_nodes(self) -> Ints:
        return np.asarray(self.labelled.nonzero().flatten().numpy())

    def _start(self, network: int) -> int:
        return sum(self.sizes[:network])

    def _nodes_of(self, network: int, among: Ints) -> Ints:
        """Return where in `among` the nodes are at which the outputs of `network` count."""
        if network == self.own.networks:
            return np.arange(len(among))
        return np.flatnonzero(self._weights(network)[among])

    def _weights(self, network: int) -> Any:
        """Return the weights of one part at all nodes, shape (n,)."""
        return self.unity[:, [network]].toarray()[:, 0]

    def _member(self, network: int, nodes: Ints, propagated: bool | None) -> tuple[Piece, Any]:
        """Return the graph of a network with outputs for `nodes`, and the weights by which they count, (nodes, r)."""
        if network < self.own.networks or self.own.coarse == "whole":
            piece = self.source.piece(nodes, self.network.layers, propagated=propagated)
            weights = np.ones(len(nodes)) if network == self.own.networks else self._weights(network)[nodes]
            return piece, sp.diags(weights, format="csr")
        targets = np.zeros_like(self.source.targets)
        targets[nodes] = 1.0  # of all clusters, those of these nodes are evaluated
        piece = replace(self.source, targets=targets).aggregated(self._cluster_of, self.network.layers)
        place = np.full(len(self._cluster_of), -1)
        place[piece.nodes[: piece.rows[-1]]] = np.arange(piece.rows[-1])
        columns = place[self._cluster_of[nodes]]
        ones = (np.ones(len(nodes)), (np.arange(len(nodes)), columns))
        return piece, sp.csr_matrix(ones, shape=(len(nodes), piece.rows[-1]))

    @cached_property
    def _cluster_of(self) -> Ints:
        sizes = [self._clusters]
        return clustered(self.graph, self.source, self.network.layers, sizes, self.spaces.clustering, self.seed)[0]

    def _group(
        self,
        members: Sequence[tuple[int, int]],
        among: Sequence[Ints],
        length: int,
        unknowns: slice | Tensor,
        propagated: bool | None = None,
    ) -> NetworkGroup:
        """Return networks of one shape.

        Parameters
        ----------
        members : sequence of (loss of the batch, network)
        among : sequence of ndarray
            Nodes of every loss of the batch.
        length : int
            Outputs of every loss, padding included.
        """
        places = [self._nodes_of(network, among[k]) for k, network in members]
        made = [self._member(network, among[k][p], propagated) for (k, network), p in zip(members, places, strict=True)]
        batch = self._evaluated([piece for piece, _ in made])
        rows, columns, data = [], [], []
        for q, ((k, _), place, (_, weights)) in enumerate(zip(members, places, made, strict=True)):
            entries = weights.tocoo()
            rows.append(k * length + place[entries.row])
            columns.append(q * batch.rows[-1] + entries.col)
            data.append(entries.data)
        shape = (len(among) * length, len(members) * batch.rows[-1])
        blend = sp.csr_matrix((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
        device = self._kind["device"]
        net = self._net
        if members[0][1] == self.own.networks and self.coarse_net:
            net = replace(net, widths=self.coarse_net.widths)
        model = torch.tensor([k for k, _ in members], device=device)
        return NetworkGroup(net, batch, Sparse.of(blend, self._low, device), unknowns, model)

    def _groups(self, networks: Sequence[int], nodes: Ints, propagated: bool | None = None) -> list[NetworkGroup]:
        """Return some of the networks as functions of all unknowns, with outputs for `nodes`."""
        fine = [k for k in networks if k < self.own.networks]
        made = []
        if fine:  # consecutive, as ranks share them out
            unknowns = slice(self._start(fine[0]), self._start(fine[-1] + 1))
            made.append(self._group([(0, k) for k in fine], [nodes], len(nodes), unknowns, propagated))
        if self.own.networks in networks:
            unknowns = slice(self._start(self.own.networks), sum(self.sizes))
            made.append(self._group([(0, self.own.networks)], [nodes], len(nodes), unknowns, propagated))
        return made

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _mine(self) -> list[int]:
        """Networks that this rank evaluates: the coarse one is the first rank's, which has the fewest others."""
        coarse = [self.own.networks] if self.coarse_net and self.comm.rank == 0 else []
        return [*self.comm.share(self.own.networks), *coarse]

    def _blended(self, networks: Sequence[int], nodes: Ints, comm: Communicator | None) -> BlendedLoss:
        kind = {"dtype": self._low, "device": self._kind["device"]}
        targets = torch.from_numpy(self.source.targets[nodes]).to(**kind)
        groups, frozen, size = self._groups(networks, nodes), torch.zeros_like(targets), (sum(self.sizes),)
        price = Price(1.0 if comm is None or comm.ranks == 1 else _work(groups) / self._work)
        return BlendedLoss(groups, frozen, targets, size, self.network.decay, price=price, comm=comm, remembers=True)

    @cached_property
    def _plain(self) -> BlendedLoss:  # type: ignore[override]
        """The loss without dropout."""
        return self._blended(self._mine, self._labelled_nodes, self.comm)

    @cached_property
    def _objective(self) -> Objective:
        if self.network.dropout == 0:
            return self._plain
        whole = slice(self._start(self.own.networks), sum(self.sizes))
        samples = [
            # the features of an aggregated graph are propagated already: no dropout there
            None if self.own.coarse == "graph" and group.unknowns == whole else group.batch
            for group in self._groups(self._mine, self._labelled_nodes, propagated=False)
        ]
        return blended_with_dropout(self._plain, samples, self.network.dropout, self.seed)

    @cached_property
    def _alone(self) -> BlendedLoss:
        """The loss with all networks on this rank."""
        if self.comm.ranks == 1:
            return self._plain
        return self._blended(range(len(self.sizes)), self._labelled_nodes, None)

    @cached_property
    def _work(self) -> float:
        return _work(self._alone.groups)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start of every network, each from a seed of its own; shape (N,)."""
        nets = [self.net] * self.own.networks + ([self.coarse_net] if self.coarse_net else [])
        return torch.cat([net.initial(seed * len(nets) + k) for k, net in enumerate(nets)]).to(**self._kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss as the only level: the coarse network is among the unknowns, a subdomain of its own.

        Raises
        ------
        ValueError
            More levels.
        """
        if levels != 1:
            raise ValueError(
                f"`levels` must be 1 for networks of their own, got {levels}; `coarse` adds a network for the whole"
            )
        return Hierarchy((Level(self.objective()),))

    def logits(self, x: Tensor) -> Tensor:
        """Return the blended outputs at all nodes without dropout, shape (n, C).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        return self._everywhere.outputs(x.to(self._low)).to(x.dtype)

    @cached_property
    def _everywhere(self) -> BlendedLoss:
        nodes = np.arange(self.graph_data.graph.nodes)
        return replace(self._blended(range(len(self.sizes)), nodes, None), remembers=False)

    # -------------------------------------------------------------------------------- subdomains

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Decomposition:  # type: ignore[override]
        """Return the decomposition of the unknowns into those of networks, or of runs of neighbouring networks.

        The local models are restrictions of the loss, evaluated at the nodes of their networks alone; with dropout they
        are those of the loss without, first-order corrected. The coarse network is the last one of the last run.

        Parameters
        ----------
        parts : int
            At most the number of networks, the coarse one included.
        overlap : int
            Networks that a run shares with either neighbour.
        comm : Communicator, optional
            The ranks that share the subdomains, the problem's own by default.

        Raises
        ------
        ValueError
            More parts than networks, fewer than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        if not 1 <= parts <= len(self.sizes):
            raise ValueError(f"`parts` must be in 1..{len(self.sizes)} (the networks), got {parts}")
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")
        subdomains = contiguous(self.sizes, parts, overlap)
        ends = [self._start(k) for k in range(len(self.sizes) + 1)]
        runs = [range(ends.index(int(s.indices[0])), ends.index(int(s.indices[-1]) + 1)) for s in subdomains]
        device = self._kind["device"]
        subdomains = [Subdomain(s.indices.to(device), s.owned.to(device)) for s in subdomains]
        made: dict[range, LocalBlends] = {}

        def build(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            local = decomposition.local
            if local not in made:
                made[local] = self._locals([runs[k] for k in local])
            y0 = decomposition.gather(x)
            low = x.to(self._low)
            z = self._outputs_at(low)
            value = self._value_at(z, low)
            models = self._cast(made[local].at(y0.to(self._low), z, value))
            if self.network.dropout == 0 or g is None:
                return models
            delta = decomposition.gather(g) * decomposition.valid - models.gradient(y0)
            return Corrected(models, delta, y0)

        return Decomposition(sum(self.sizes), subdomains, build, comm.share(parts), corrected=self.network.dropout > 0)

    def _outputs_at(self, x: Tensor) -> Tensor:
        """Return the blended outputs at `x`, of the last evaluation if that was there."""
        known = self._plain.known(x)
        if known is not None:
            return known
        with on_this_rank():
            self._alone.price.of_value()
        return self._alone.outputs(x)

    def _value_at(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the loss where the outputs are `z`, shape ()."""
        ends = self._start(self.own.networks)
        squares = x[:ends].view(self.own.networks, -1)[:, : self.net.decayed].square().sum()
        if self.coarse_net:
            squares = squares + x[ends : ends + self.coarse_net.decayed].square().sum()
        return self._plain.losses(z)[0] + 0.5 * self.network.decay * squares

    def _locals(self, runs: Sequence[range]) -> LocalBlends:
        """Return the local models of runs of networks, without what the others add."""
        nodes, device = self._labelled_nodes, self._kind["device"]
        among = [np.unique(np.concatenate([self._nodes_of(k, nodes) for k in run])) for run in runs]
        length = max(1, *(len(a) for a in among)) if among else 1
        width = max((self._start(run.stop) - self._start(run.start) for run in runs), default=0)
        index, valid = np.zeros((len(runs), length), dtype=np.int64), np.zeros((len(runs), length))
        for k, rows in enumerate(among):
            index[k, : len(rows)], valid[k, : len(rows)] = rows, 1.0
        groups = []
        for coarse in (False, True):
            members = [(k, j) for k, run in enumerate(runs) for j in run if (j == self.own.networks) == coarse]
            if members:
                starts = [k * width + self._start(j) - self._start(runs[k].start) for k, j in members]
                size = self.sizes[members[0][1]]
                unknowns = (torch.tensor(starts)[:, None] + torch.arange(size)).flatten().to(device)
                groups.append(self._group(members, [nodes[a] for a in among], length, unknowns))
        keep = torch.from_numpy(valid).to(dtype=self._low, device=device).view(-1, 1)
        flat = torch.from_numpy(index).flatten().to(device)
        targets = self._plain.targets[flat] * keep
        price = Price(_work(groups) / self._work, fine=False)
        local = BlendedLoss(
            groups, torch.zeros_like(targets), targets, (len(runs), width), self.network.decay, price=price
        )
        return LocalBlends(local, flat, keep)


def _work(groups: Sequence[NetworkGroup]) -> float:
    return sum(group.batch.work(group.net.widths) for group in groups)
