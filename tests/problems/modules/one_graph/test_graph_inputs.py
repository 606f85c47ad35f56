"""What users bring as network and graph: the loss is that of their own call, or a line says what does not fit."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mldd.problems.modules import Division, GraphProblem, SupervisedProblem
from mldd.problems.modules.graph_samples import one_graph

gnn = pytest.importorskip("torch_geometric.nn")
N = 40
RANDOM = torch.Generator().manual_seed(0)
X, EDGES = torch.randn(N, 5, generator=RANDOM), torch.randint(0, N, (2, 160), generator=RANDOM)
CLASSES = torch.arange(N) % 3


def graph(**more):
    found = {"x": X, "edge_index": EDGES, "y": CLASSES, **more}
    return {name: value for name, value in found.items() if value is not None}


class Net(nn.Module):
    def __init__(self, last=None, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = gnn.SAGEConv(5, outputs), last or nn.Identity()

    def forward(self, x, edge_index):
        return self.last(self.conv(x, edge_index))


class OfGraph(Net):
    def forward(self, data):
        return self.conv(data.x, data.edge_index) * (data.num_nodes / data.num_nodes)


class OfMatrix(Net):
    def forward(self, x, adj_t):
        return self.conv(x, adj_t)


class PerNode(Net):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(N, 3))

    def forward(self, x, edge_index):
        return self.conv(x, edge_index) + self.own


def value(net, data, **options):
    problem = GraphProblem(net, data, **options)
    return problem.objective().value(problem.initial(0))


def test_numbers_of_nodes_are_as_good_as_a_mask():
    net, chosen = Net(), torch.tensor([3, 7, 20])
    expected = functional.cross_entropy(net(X, EDGES)[chosen], CLASSES[chosen])
    torch.testing.assert_close(value(net, graph(train_idx=chosen)), expected.detach())
    task = GraphProblem(net, graph(train_idx=chosen, valid_idx=torch.tensor([0]), test_idx=chosen + 1)).task
    assert [int(task.masks[name].sum()) for name in ("train", "validation", "test")] == [3, 1, 3]


def test_a_network_that_takes_the_graph_itself_is_called_with_it_and_has_parts():
    net = OfGraph()
    split = {"train_idx": torch.arange(9), "valid_idx": torch.arange(9, 12)}
    problem, by_name = GraphProblem(net, graph(**split)), GraphProblem(Net(), graph())
    assert problem.arguments.names == ("edge_index", "x")
    expected = functional.cross_entropy(net.conv(X, EDGES)[:9], CLASSES[:9])
    torch.testing.assert_close(problem.objective().value(problem.initial(0)), expected.detach())
    x = by_name.initial(0).expand(2, -1)
    found = [GraphProblem(n, graph()).decomposition(2).models(by_name.objective(), x[0], None) for n in (net, Net())]
    torch.testing.assert_close(found[0].value(x), found[1].value(x))


def test_lazy_layers_are_made_by_a_call():
    net = gnn.SAGEConv((-1, -1), 3)
    found = value(net, graph())
    torch.testing.assert_close(found, functional.cross_entropy(net(X, EDGES), CLASSES).detach())
    with pytest.raises(ValueError, match="lazy ones in LazyLinear; call it once"):
        SupervisedProblem(nn.LazyLinear(3), (X, CLASSES), functional.cross_entropy)


@pytest.mark.parametrize(
    ("net", "more", "said"),
    [
        (Net(), {"y": CLASSES + 1}, "labels y must be in 0..2 for the 3 outputs of the network, got 1..3"),
        (Net(outputs=2), {}, "for the 2 outputs of the network, got 0..2"),
        (Net(nn.Softmax(-1)), {}, "takes logits, got outputs that look like probabilities"),
        (Net(nn.Sigmoid()), {"y": torch.stack([CLASSES == k for k in range(3)], 1)}, "takes logits"),
        (
            Net(),
            {"x": X.long()},
            r"Net with float32 parameters must take x int64 \(40, 5\), edge_index int64 .* got RuntimeError: ",
        ),
        (Net(), {"x": X[:, :3]}, r"Net with float32 parameters must take x float32 \(40, 3\)"),
        (Net(), {"train_mask": torch.ones(7, dtype=torch.bool)}, "say of each of 40 nodes .* got 7 values"),
        (Net(), {"train_mask": torch.arange(N)}, "numbers of nodes are train_idx"),
        (Net(), {"train_idx": torch.tensor([40])}, r"numbers of nodes in 0\.\.39"),
        (OfMatrix(), {"adj_t": torch.eye(N).to_sparse()}, "`adj_t` of OfMatrix must be no sparse matrix"),
        (torch.compile(Net(), backend="eager"), {}, "before it is compiled"),
        (nn.Identity(), {}, "must have a trainable parameter, got none in Identity"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(net, more, said):
    with pytest.raises(ValueError, match=said) as refused:
        value(net, graph(**more))
    assert "\n" not in str(refused.value)


def test_probabilities_and_their_own_loss_are_taken():
    net = Net(nn.Softmax(-1))
    found = value(net, graph(), loss=lambda outputs, targets: functional.nll_loss(outputs.log(), targets))
    torch.testing.assert_close(found, functional.nll_loss(net(X, EDGES).log(), CLASSES).detach())


@pytest.mark.parametrize("local", ["composite", "own"])
def test_parameters_per_node_are_refused_for_parts_and_coarse_graphs_on_one_rank_too(local):
    problem = GraphProblem(PerNode(), graph(), division=Division(local=local))
    assert torch.isfinite(problem.objective().value(problem.initial(0)))
    with pytest.raises(ValueError, match="tensors of its own per node.*subdomains=layers"):
        problem.decomposition(2)
    with pytest.raises(ValueError, match="PerNode with float32 parameters must take x float32"):
        problem.hierarchy(2)


def test_several_kinds_of_nodes_are_refused_with_a_way_out():
    data = pytest.importorskip("torch_geometric.data")
    hetero = data.HeteroData()
    hetero["a"].x, hetero["b"].x = X, X
    hetero["a", "to", "b"].edge_index = EDGES
    with pytest.raises(ValueError, match=r"got HeteroData; take data.to_homogeneous\(\)"):
        one_graph(hetero)
    assert one_graph(hetero.to_homogeneous()) is not None


def test_outputs_that_would_be_paired_with_all_targets_are_refused():
    with pytest.raises(ValueError, match="target size"):
        SupervisedProblem(nn.Linear(5, 1), (X, X[:, 0]), functional.mse_loss)


LABELS = torch.stack([CLASSES == k for k in range(3)], 1).float()
PAIRS = torch.tensor([[0, 1, 2], [3, 4, 5]])


def links(**more):
    return {"y": None, "edge_label_index": PAIRS, "edge_label": torch.tensor([1.0, 0.0, 1.0]), **more}


@pytest.mark.parametrize(
    ("net", "more", "said"),
    [
        (Net(), {"y": torch.where(LABELS > 0, LABELS, -LABELS - 1)}, "zeros and ones, and NaN where nothing is known"),
        (Net(), {"y": torch.where(LABELS > 0, 1, -1)}, "zeros and ones, and NaN where nothing is known"),
        (Net(), {"y": X[:, :2]}, "as many numbers per node as y has, 2, got 3; .* classes as whole numbers"),
        (Net(), {"y": CLASSES.float()}, r"as many numbers per node as y has, 1, got 3; .*\(y.long\(\)\)"),
        (Net(outputs=1), {"y": CLASSES}, r"in 0\.\.0 for the 1 outputs .* numbers that are no classes as y.float\(\)"),
        (Net(outputs=1), {"y": X[:, 0] / 0}, "`y` must be finite, or NaN where nothing is known, got infinity"),
        (Net(), {"x": X.to_sparse()}, "`x` of Net must be no sparse matrix, got one; .* to_dense"),
        (Net(), {"edge_index": EDGES.int()}, r"must be a tensor of int64 .* got torch.int32 .* \.long\(\)"),
        (Net(), links(edge_label_index=torch.tensor([[0, 1, -1], [3, 4, 5]])), r"nodes 0\.\.39, got .* of -1\.\.5"),
        (Net(), links(edge_label_index=PAIRS + 40), r"nodes 0\.\.39, got .* of 40\.\.45"),
        (Net(), links(edge_label_index=PAIRS.T), r"shape \(2, m\) .* got torch.int64 \(3, 2\)"),
        (Net(), links(edge_label=torch.ones(2)), r"a row for each of 3 pairs, got shape \(2,\)"),
        (Net(), links(edge_label=torch.tensor([0, 1, 2])), r"`edge_label` must be in \[0, 1\] for links"),
    ],
)
def test_labels_that_would_be_misread_are_refused_in_a_line(net, more, said):
    with pytest.raises(ValueError, match=said) as refused:
        value(net, graph(**more))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["edge_weight", "edge_attr"])
def test_attributes_of_edges_are_finite(name):
    class Taking(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(5, 3)

        def forward(self, x, edge_index, edge_weight=None, edge_attr=None):
            return self.last(x) * (edge_weight if edge_attr is None else edge_attr).sum()

    spoilt = torch.ones(160)
    spoilt[7] = torch.inf
    with pytest.raises(ValueError, match=f"`{name}` must be finite, got another value at edge 7; fill it in"):
        value(Taking(), graph(**{name: spoilt}))


def flat(outputs, targets):
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.float())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("mse", "`loss` must be a function of outputs and targets, got 'mse'"),
        (
            nn.BCEWithLogitsLoss(),
            r"must take outputs torch.float32 \(40, 1\) and targets torch.int64 \(40,\), got",
        ),
        (functional.mse_loss, "Using a target size"),
        (lambda outputs, targets: (outputs - targets).square().mean(), "pairs each with all; take outputs"),
    ],
)
def test_losses_that_do_not_fit_outputs_and_labels_are_refused_in_a_line(loss, said):
    given = graph(y=CLASSES % 2)
    with pytest.raises(ValueError, match=said) as refused:
        value(Net(outputs=1), given, loss=loss)
    assert "\n" not in str(refused.value)
    net = Net(outputs=1)
    expected = flat(net(X, EDGES), CLASSES % 2)
    torch.testing.assert_close(value(net, given, loss=flat), expected.detach())


def test_what_of_labels_and_masks_is_not_used_or_used_twice_is_said():
    first, second = torch.arange(N) < 30, torch.arange(N) >= 25
    masks = GraphProblem(Net(), graph(train_mask=first, val_mask=~first, test_mask=second)).details()["notes"]
    assert "5 nodes are for test and for train, too: their scores are of no use" in masks
    assert "10 nodes are for test and for validation, too: their scores are of no use" in masks and len(masks) == 2
    some = torch.where(torch.arange(N)[:, None] < torch.tensor([4, 4, 10]), torch.nan, LABELS)
    notes = GraphProblem(Net(), graph(y=some)).details()["notes"]
    assert "6 nodes of which only some numbers of y are known are left out" in notes
    assert any("for classes give y.argmax(1)" in note for note in notes)
    pairs = GraphProblem(Net(), graph(**links(y=CLASSES), train_mask=first)).details()["notes"]
    assert pairs == ["not used: y, train_mask"]


@pytest.mark.parametrize("rows", [lambda z: z.mean(0, keepdim=True), lambda z: z[:30], lambda z: torch.cat([z, z])])
def test_more_or_fewer_rows_than_nodes_are_refused(rows):
    class Rows(nn.Module):
        def forward(self, z):
            return rows(z)

    with pytest.raises(ValueError, match=r"must return a row for each of 40 nodes, got shape .*: \[data\]"):
        value(Net(Rows()), graph())
    with pytest.raises(ValueError, match=r"`y` must have a row for each of 40 nodes, got shape \(1,\); .* \[data\]"):
        value(Net(Rows()), graph(y=CLASSES[:1]))


def test_that_frozen_statistics_are_not_kept_is_said():
    net = Net(nn.BatchNorm1d(3))
    assert GraphProblem(net, graph()).details().get("notes") is None
    net.last.eval()
    assert "batch normalisation in evaluation mode is trained" in GraphProblem(net, graph()).details()["notes"][0]
