"""Many graphs as samples: losses, gradients and steps of a plain torch_geometric loop, kinds of labels, splits."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import mldd
from mldd.algebra import sampled
from mldd.loop import Stop, minimise
from mldd.problems.modules import GraphProblem, SupervisedProblem
from mldd.solvers import Adam, NonlinearSchwarz

pytest.importorskip("torch_geometric")

from torch_geometric.data import Batch, Data, InMemoryDataset  # noqa: E402
from torch_geometric.loader import DataLoader  # noqa: E402
from torch_geometric.nn import BatchNorm, GATConv, GCNConv, global_mean_pool  # noqa: E402


def graph(i, generator, y):
    m = 4 + i % 5  # unequal graphs
    x = torch.randn(m, 3, generator=generator, dtype=torch.float64)
    return Data(x=x, edge_index=torch.randint(0, m, (2, 2 * m + 1), generator=generator), y=y(i, x))


def graphs(n=24, y=lambda i, x: torch.tensor([i % 2]), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [graph(i, generator, y) for i in range(n)]


class Net(nn.Module):
    """A network for graphs, with rows per graph or per node."""

    def __init__(self, outputs=2, dropout=0.0, norm=False, pooled=True, kind=GCNConv):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = kind(3, 4), kind(4, 4)
        self.norm = BatchNorm(4) if norm else nn.Identity()
        self.out = nn.Linear(4, outputs)
        self.dropout, self.pooled = dropout, pooled
        self.double()

    def forward(self, x, edge_index, batch):
        x = functional.dropout(self.norm(self.first(x, edge_index)).tanh(), self.dropout, self.training)
        x = self.second(x, edge_index)
        x = self.out(global_mean_pool(x, batch) if self.pooled else x)
        return functional.dropout(x, self.dropout, self.training)


class OfBatch(Net):
    def forward(self, data):
        return super().forward(data.x, data.edge_index, data.batch)


def by_loop(net, chosen, x, loss):
    """Loss and gradient of a copy of the network with parameters x over some graphs, by torch_geometric alone."""
    nn.utils.vector_to_parameters(x, net.parameters())
    batch = Batch.from_data_list(chosen)
    value = loss(net, batch)
    return value.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))])


def cross_entropy(net, batch):
    return functional.cross_entropy(net(batch.x, batch.edge_index, batch.batch), batch.y)


def several(i, x):
    y = torch.tensor([[i % 2, (i // 2) % 2, 1.0]], dtype=torch.float64)
    return y if i % 5 else y.masked_fill(torch.tensor([[True, False, False]]), math.nan)


def masked(net, batch):
    out = net(batch.x, batch.edge_index, batch.batch)
    known = ~batch.y.isnan()
    return functional.binary_cross_entropy_with_logits(out[known], batch.y[known])


# kind of task -> labels of a graph, outputs, whether graphs have them, the loss of a plain loop, its scores
TASKS = {
    "classes": (lambda i, x: torch.tensor([i % 3]), 3, True, cross_entropy, "accuracy"),
    "labels": (several, 3, True, masked, "auc"),
    "numbers": (
        lambda i, x: x.mean().view(1),
        1,
        True,
        lambda net, b: functional.mse_loss(net(b.x, b.edge_index, b.batch)[:, 0], b.y),
        "rmse",
    ),
    "classes of nodes": (lambda i, x: (x[:, 0] > 0).long(), 2, False, cross_entropy, "accuracy"),
    "one number": (lambda i, x: i % 3, 3, True, cross_entropy, "accuracy"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_loss_and_gradient_are_those_of_a_plain_loop(kind):
    y, outputs, pooled, loss, score = TASKS[kind]
    data, net = graphs(y=y), Net(outputs, pooled=pooled)
    problem = SupervisedProblem(net, data)
    x = problem.initial() + 0.1
    expected = by_loop(Net(outputs, pooled=pooled), data, x, loss)
    for ours, theirs in zip(problem.objective().value_and_gradient(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    assert problem.model.kind == "mean" and not problem.model.noisy
    found = problem.metrics(x)
    assert found["train_loss"] == pytest.approx(float(expected[0]), rel=1e-10) and f"train_{score}" in found
    assert "notes" not in problem.details()
    # parts of the data with unequal weights: the gradient of the whole is their weighted mean
    decomposition = problem.decomposition(5, subdomains="data")
    models = decomposition.models(problem.objective(), x, None)
    weights = torch.stack([problem.samples.weights[f.rows].sum() for f in models.losses])
    g = (models.gradient(decomposition.gather(x)) * (weights / weights.sum())[:, None]).sum(0)
    torch.testing.assert_close(g, expected[1], rtol=1e-10, atol=1e-13)
    assert "one after the other, which takes longer: their samples are no tensors" in problem.details()["notes"][0]


def test_scores():
    y, outputs, _, _, _ = TASKS["labels"]
    sklearn = pytest.importorskip("sklearn.metrics")
    data, net = graphs(y=y), Net(outputs)
    found = SupervisedProblem(net, data).metrics(SupervisedProblem(net, data).initial())
    batch = Batch.from_data_list(data)
    out, known = net(batch.x, batch.edge_index, batch.batch).detach(), ~batch.y.isnan()
    areas = [sklearn.roc_auc_score(batch.y[known[:, k], k], out[known[:, k], k]) for k in range(2)]  # the third is 1
    assert found["train_auc"] == pytest.approx(sum(areas) / 2)
    assert found["train_accuracy"] == pytest.approx(float(((out > 0) == (batch.y > 0.5))[known].double().mean()))
    numbers, net = graphs(y=TASKS["numbers"][0]), Net(1)
    found = SupervisedProblem(net, numbers).metrics(SupervisedProblem(net, numbers).initial())
    batch = Batch.from_data_list(numbers)
    errors = net(batch.x, batch.edge_index, batch.batch).detach()[:, 0] - batch.y
    assert found["train_rmse"] == pytest.approx(float(errors.square().mean().sqrt()))


def test_steps_of_adam_are_those_of_a_plain_loop():
    data, twin = graphs(), Net(norm=True)
    problem = SupervisedProblem(Net(norm=True), DataLoader(data, batch_size=6, shuffle=True))
    result = minimise(problem.objective(), problem.initial(), Adam(0.01), stop=Stop(10))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(twin.parameters(), 0.01)
    for step in range(10):
        rows = sampled(problem.objective(), step).drawn.rows
        assert len(rows) == 6
        optimizer.zero_grad()
        cross_entropy(twin, Batch.from_data_list([data[int(k)] for k in order[rows]])).backward()
        optimizer.step()
    theirs = torch.cat([p.detach().flatten() for p in twin.parameters()])
    torch.testing.assert_close(result.x, theirs, rtol=1e-8, atol=1e-10)


def test_forms_of_data_networks_and_losses():
    class Mine(InMemoryDataset):
        def __init__(self):
            super().__init__()
            self.data, self.slices = self.collate(graphs())

    def weighted(outputs, targets):
        return functional.cross_entropy(outputs, targets)

    expected = SupervisedProblem(Net(), graphs()).objective().value(SupervisedProblem(Net(), graphs()).initial())
    forms = [
        (Net(), Mine(), {}),
        (Net(), DataLoader(graphs(), batch_size=24), {}),
        (Net(), [g.to_dict() for g in graphs()], {"inputs": ("x", "edge_index", "batch")}),
        (OfBatch(), graphs(), {}),
        (Net(), graphs(), {"loss": weighted}),
        (Net(), graphs(), {"loss": cross_entropy}),
    ]
    for net, data, options in forms:
        problem = SupervisedProblem(net, data, **options)
        value = problem.objective().value(problem.initial())
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_subdomains_levels_and_noise():
    data = graphs()
    problem = SupervisedProblem(Net(dropout=0.2, norm=True), data, batch=12)
    f, x = problem.objective(), problem.initial()
    assert problem.model.kind == "mean" and problem.model.noisy and problem.model.statistics
    assert torch.equal(f.sample(3).gradient(x), f.sample(3).gradient(x))
    assert not torch.equal(f.sample(3).value(x), f.sample(4).value(x))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    half = [data[int(k)] for k in order[:12]]
    coarse = problem.hierarchy(2)[1].objective
    torch.testing.assert_close(coarse.value(x), by_loop(Net(norm=True), half, x, cross_entropy)[0], rtol=1e-9, atol=0)
    for subdomains, parts in (("data", 4), ("layers", 2), ("both", 2)):
        p = SupervisedProblem(Net(), data, subdomains=subdomains)
        result = minimise(p.objective(), p.initial(), NonlinearSchwarz(p.decomposition(parts, 0)), stop=Stop(3))
        assert float(p.objective().value(result.x)) < float(p.objective().value(p.initial()))


def test_splits_and_predictions():
    data = graphs()
    checked, mask = torch.arange(4), torch.arange(24) > 20
    split = SupervisedProblem(Net(), data, split={"validation": checked, "test": mask})
    lists = SupervisedProblem(Net(), {"train": data[4:21], "validation": data[:4], "test": data[21:]})
    x = split.initial()
    assert len(split.samples) == 17 and split.metrics(x) == lists.metrics(x)
    assert split.validation(x)["validation_loss"] == pytest.approx(
        float(by_loop(Net(), data[:4], x, cross_entropy)[0]), rel=1e-10
    )
    run = mldd.train(Net(), data, split={"validation": checked}, steps=3, options={"validate_every": 1})
    assert [v == v for v in run.history.column("validation_loss")] == [True] * 4
    unlabelled = [Data(x=g.x, edge_index=g.edge_index) for g in data]
    batch = Batch.from_data_list(data)
    outputs = run.model(batch.x, batch.edge_index, batch.batch).detach()
    torch.testing.assert_close(run.predict(unlabelled), outputs)
    torch.testing.assert_close(run.predict(data), outputs)


def test_a_data_set_of_one_graph_is_a_graph():
    class One(InMemoryDataset):
        def __init__(self):
            super().__init__()
            self.data, self.slices = self.collate([g])

    g = graphs(1, y=lambda i, x: (x[:, 0] > 0).long())[0]

    class Plain(Net):
        def forward(self, x, edge_index):
            return super().forward(x, edge_index, None)

    run = mldd.train(Plain(pooled=False), One(), steps=1)
    assert isinstance(run.problem, GraphProblem)


def changed(data, **fields):
    other = data[3].clone()
    for key, value in fields.items():
        setattr(other, key, value)
    return [*data[:3], other]


@pytest.mark.parametrize(
    ("net", "data", "options", "words"),
    [
        (Net(), graphs(y=lambda i, x: torch.ones(3)), {}, r"`y` must have one row per graph, .* use y.view\(1, -1\)"),
        (Net(pooled=False), graphs(), {}, "must return a row for each of .* graphs of a batch, .* global_mean_pool"),
        (Net(), graphs(y=lambda i, x: torch.ones(len(x)).long()), {}, "row for each of .* nodes .* leave out the pool"),
        (
            Net(),
            changed(graphs(), x=torch.full((7, 3), math.nan)),
            {},
            "`x` must be finite, got another value in graph 3",
        ),
        (
            Net(),
            changed(graphs(), z=torch.ones(1)),
            {},
            "the same fields, got edge_index x y in the first and .* number 3",
        ),
        (
            Net(),
            changed(graphs(), x=torch.ones(7, 4)),
            {},
            r"must be of one kind .* got float \(\*, 3\) .* \(\*, 4\)",
        ),
        (
            Net(),
            changed(graphs(), x=torch.ones(7, 3).long()),
            {},
            r"`x` must be of one kind .* int64 .* in number 3",
        ),
        (Net(), changed(graphs(), edge_index=torch.full((2, 1), 7)), {}, r"nodes 0\.\.6 in graph 3, got 7\.\.7"),
        (Net(), [Data(x=g.x, edge_index=g.edge_index) for g in graphs()], {}, "must have labels y, got edge_index x"),
        (nn.Bilinear(3, 3, 1).double(), graphs(), {}, "`data` must have input1, input2 for Bilinear"),
        (Net(), graphs(), {"split": {"held": torch.arange(2)}}, "must be of train, validation, test, got 'held'"),
        (Net(), graphs(), {"split": {"test": torch.arange(25)}}, r"different numbers in 0\.\.23"),
        (Net(), graphs(), {"split": {"test": torch.ones(3) > 0}}, r"a mask of shape \(24,\)"),
        (Net(), {"train": graphs()}, {"split": {"test": torch.arange(2)}}, "with data that are divided"),
    ],
)
def test_refuses(net, data, options, words):
    with pytest.raises(ValueError, match=words):
        SupervisedProblem(net, data, **options)


def test_attention_with_dropout_on_loops_is_shared():
    net = Net(kind=lambda a, b: GATConv(a, b, dropout=0.5))
    problem = SupervisedProblem(net, graphs())
    assert problem.model.kind == "mean" and problem.model.noisy


def test_a_layer_that_keeps_the_edges_of_the_first_graph_is_refused():
    with pytest.raises(ValueError, match="layer 'first' of Net keeps .* cached=True, which .* wrong on the others"):
        SupervisedProblem(Net(kind=partial(GCNConv, cached=True)), graphs())
