"""How far outputs reach is measured away from a start that hides it."""

import pytest
import torch
from torch import nn

from mldd.problems.modules import Division, GraphProblem
from tests.problems.modules.one_graph.test_graph_problem import C, F, data

gnn = pytest.importorskip("torch_geometric.nn")


class FromZero(nn.Module):
    """Two layers, the last of which starts from zero as residual networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = gnn.SAGEConv(F, 8), gnn.SAGEConv(8, C)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def forward(self, x, edge_index):
        return self.last(self.first(x, edge_index).tanh(), edge_index)


def test_a_last_layer_of_zeros_does_not_hide_the_reach():
    p = GraphProblem(FromZero().double(), data(), batch=10)
    assert p.hops == 2
    x = p.initial() + 0.1
    f = p.objective().sample(0)
    chosen = f.pieces[0].nodes[f.pieces[0].rows]
    expected = nn.functional.cross_entropy(p.outputs(x)[chosen], p.data["y"][chosen])
    torch.testing.assert_close(f.value(x), expected, rtol=1e-10, atol=1e-12)


class Scaled(nn.Module):
    """A convolution of features and weights that a test scales by those of the whole graph."""

    def __init__(self, scale, flow="source_to_target"):
        super().__init__()
        self.scale, self.conv = scale, gnn.GraphConv(F, C, flow=flow)

    def forward(self, x, edge_index, edge_weight):
        return self.conv(*self.scale(x, edge_index, edge_weight))


@pytest.mark.parametrize(
    "scale",
    [
        lambda x, edges, w: (x, edges, w / w.max()),
        lambda x, edges, w: (x, edges, w / w.min()),
        lambda x, edges, w: (x, edges, w - w.median()),
        lambda x, edges, w: (x / x.abs().max(), edges, w),
        lambda x, edges, w: (x - x.min(0).values, edges, w),
    ],
)
def test_what_is_scaled_by_the_whole_graph_is_refused_for_parts_of_it(scale):
    p = GraphProblem(Scaled(scale), data())
    with pytest.raises(ValueError, match="a layer looks at all nodes or edges .* subdomains=layers"):
        p.decomposition(3, 1)
    assert GraphProblem(Scaled(lambda *given: given), data()).hops == 1
    layers = GraphProblem(p.net, data(), division=Division(subdomains="layers"))
    assert layers.decomposition(1, 0).parts == 1


def test_messages_against_the_edges_are_refused_for_parts_with_a_way_out():
    against, along = Scaled(lambda *given: given, flow="target_to_source"), Scaled(lambda *given: given)
    given = data()
    with pytest.raises(ValueError, match=r"sends against the edges .* give edge_index.flip\(0\) instead"):
        GraphProblem(against, given).decomposition(3, 1)
    along.load_state_dict(against.state_dict())
    turned = GraphProblem(along, {**given, "edge_index": given["edge_index"].flip(0)})
    p = GraphProblem(against, given)
    torch.testing.assert_close(turned.objective().value(p.initial()), p.objective().value(p.initial()))
    assert turned.decomposition(3, 1).parts == 3
    edges = torch.cat([given["edge_index"], given["edge_index"].flip(0)], 1)
    both = {**given, "edge_index": edges, "edge_weight": torch.ones(edges.shape[1]), "edge_attr": None}
    assert GraphProblem(against, both).hops == 1
