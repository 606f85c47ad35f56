"""How far outputs reach is measured away from a start that hides it."""

import pytest
import torch
from torch import nn

from mldd.problems.modules import GraphProblem
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
