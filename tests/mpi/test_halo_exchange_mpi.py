"""A network whose states are fetched behind every propagation gives on P ranks what it gives on one, or is not used."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    from math import prod
    import torch
    from torch import nn
    from torch.nn import functional
    from torch_geometric import nn as gnn
    from mldd.algebra import counting, sampled
    import mldd
    from mldd.problems.modules import GraphProblem
    from mldd.ranks import SERIAL, world
    from tests.problems.modules.one_graph.test_graph_problem import C, F, N, NETS, data

    class Deep(nn.Module):
        # three layers of one kind, with a norm over all nodes between them
        def __init__(self, make):
            super().__init__()
            self.convs = nn.ModuleList([make(F, 8), make(8, 8), make(8, C)])
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x, edge_index, edge_attr=None):
            more = {} if edge_attr is None else {"edge_attr": edge_attr}
            x = self.norm(self.convs[0](x, edge_index, **more)).tanh()
            x = functional.dropout(x, 0.3, self.training)
            return self.convs[2](x + self.convs[1](x, edge_index, **more).tanh(), edge_index, **more)

    class Plain(Deep):
        def forward(self, x, edge_index):
            return Deep.forward(self, x, edge_index)

    def principal(a, b):
        return gnn.PNAConv(a, b, ["mean", "max", "std"], ["identity", "amplification"], torch.tensor([1, 5, 20, 30]))

    layers = {
        "gatv2": lambda: Deep(lambda a, b: gnn.GATv2Conv(a, b, edge_dim=2)),
        "gat": lambda: Plain(lambda a, b: gnn.GATConv(a, b, heads=2, concat=False, dropout=0.4)),
        "gcn": lambda: Plain(gnn.GCNConv),
        "chebyshev": lambda: Plain(lambda a, b: gnn.ChebConv(a, b, 3)),
        "sage": lambda: Plain(gnn.SAGEConv),
        "transformer": lambda: Deep(lambda a, b: gnn.TransformerConv(a, b, edge_dim=2)),
        "pna": lambda: Plain(principal),
        "by hand": NETS["by hand"],
    }

    class Gated(nn.Module):
        # one layer that propagates three times
        def __init__(self, a, b):
            super().__init__()
            self.first, self.conv, self.last = nn.Linear(a, 8), gnn.GatedGraphConv(8, 3), nn.Linear(8, b)

        def forward(self, x, edge_index):
            return self.last(self.conv(self.first(x), edge_index))

    layers["gated"] = lambda: Gated(F, C)

    class ByIndex(gnn.MessagePassing):
        # gathers by the edges' numbers outside of its propagation
        def __init__(self):
            super().__init__(aggr="add")
            self.first, self.last = nn.Linear(F, 5), nn.Linear(5, C)

        def forward(self, x, edge_index):
            x = self.propagate(edge_index, x=self.first(x)).tanh()
            x = torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]]).tanh()
            return self.last(self.propagate(edge_index, x=x))

    def same(a, b, what, tolerance):
        gap = float((a - b).norm() / (b.norm() + 1e-300))
        assert gap <= tolerance, (what, gap)

    def pair(make, given, **options):
        both = []
        for comm in (world(), SERIAL):
            torch.manual_seed(1)
            both.append(mldd.problem(GraphProblem, net=make().double(), data=given, comm=comm, **options))
        return both

    def compare(name, p, q, tolerance=1e-11):
        x = q.initial(0) + 0.05
        for step in (None, 3) if hasattr(q.objective(), "sample") else (None,):
            f, g = [r.objective() if step is None else sampled(r.objective(), step) for r in (p, q)]
            same(f.value(x), g.value(x), (name, step, "value"), 1e-12)
            with counting() as cost:
                found = f.gradient(x)
            same(found, g.gradient(x), (name, step, "gradient"), tolerance)
        return cost

    looped = data()
    loops = torch.tensor([[3, 90, 70], [3, 90, 70]])
    looped["edge_index"] = torch.cat([looped["edge_index"], loops], 1)
    del looped["edge_attr"], looped["edge_weight"]
    deep = pair(layers["gat"], looped, halo="deep")
    compare("dropout of attention, deep halos", *deep)
    for name, make in layers.items():
        p, q = pair(make, looped if name == "gat" else data(), halo="exchange")
        fetching = p.shares.fetching
        p.objective()
        assert fetching is not None, (name, p.shares.told)
        cost = compare(name, p, q, 1e-10 if "pna" in name else 1e-11)
        # states of the rows that others read are sent on the way there, and those of the halo on the way back
        assert fetching.exchanges <= cost.exchanges <= 2 * fetching.exchanges, name
        halo = fetching.layer.halo
        back = cost.exchanges - fetching.exchanges
        assert cost.halo_rows == fetching.exchanges * len(halo.index) + back * halo.size, name
        if name in ("gatv2", "gat", "gcn", "transformer"):
            assert back == fetching.exchanges == 2, (name, back)
            widths = [prod(shape[1:]) for shape, sent in zip(fetching.shapes, fetching.needed) if sent]
            assert cost.halo_bytes == 8 * sum(widths) * (len(halo.index) + halo.size), name
        assert not fetching.needed[-1], (name, "nobody reads what the last propagation returns for others' nodes")
    pairs = torch.randint(0, N, (2, 50), generator=torch.Generator().manual_seed(3))
    links = {"edge_label_index": pairs, "edge_label": (torch.arange(50) % 2).float(), **data()}
    p, q = pair(layers["gatv2"], links, halo="exchange")
    compare("links", p, q)
    assert p.shares.fetching is not None, p.shares.told
    p, q = pair(layers["gcn"], data(), halo="exchange", batch=20)
    compare("batch", p, q)
    assert p.shares.fetching is not None
    p, q = pair(layers["gcn"], data())
    compare("auto", p, q)
    assert "rows of nodes and edges per sweep" in p.details()["notes"][-1]
    p, q = pair(ByIndex, data(), halo="exchange")
    compare("by index", p, q)
    assert p.shares.fetching is None and "outputs were others" in p.details()["notes"][-1], p.details()
    print("all the same")
"""


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_fetched_states_give_what_one_rank_gives(ranks):
    pytest.importorskip("torch_geometric")
    agree(ranks, SCRIPT)
