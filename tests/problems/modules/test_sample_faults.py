"""Samples, losses and predictions as users bring them: the numbers of a plain loop, or a line that says what to do."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import mldd
from mldd.problems.modules import SupervisedProblem

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(50, 4, generator=RANDOM)
Y = torch.randint(0, 3, (50,), generator=RANDOM)


def network(*before, outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(*before, nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


def run(net, data, loss=functional.cross_entropy, **options):
    return mldd.train(net, data, loss=loss, **{"solver": "sgd:lr=0.1,momentum=0", "steps": 3, **options})


class Halved(nn.Module):
    def forward(self, x):
        return x.mul_(0.5)


def halve(outputs, targets):
    return functional.cross_entropy(outputs, targets.mul_(0))


def test_what_writes_to_samples_is_refused():
    """A loader makes new batches for every step; here they are made once, and would be halved again and again."""
    with pytest.raises(ValueError, match="forward of Sequential must leave its arguments as they are"):
        SupervisedProblem(network(Halved()), (X.clone(), Y), functional.cross_entropy)
    with pytest.raises(ValueError, match="`loss` must leave its arguments as they are, got one that writes to"):
        SupervisedProblem(network(), (X, Y.clone()), halve)
    graphs = pytest.importorskip("torch_geometric.data")
    many = [graphs.Data(x=X[k : k + 5].clone(), edge_index=torch.zeros(2, 0).long(), y=Y[k : k + 5]) for k in (0, 5)]

    class OfGraphs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(Halved())

        def forward(self, x):
            return self.net(x)

    with pytest.raises(ValueError, match="writes to x in place"):
        SupervisedProblem(OfGraphs(), many)


def test_the_network_that_was_handed_in_is_the_trained_one():
    net = network()
    twin = copy.deepcopy(net)
    found = run(net, (X, Y))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(twin(X), Y).backward()
        optimizer.step()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert found.metrics["train_loss"] == pytest.approx(float(functional.cross_entropy(net(X), Y).detach()), rel=1e-6)


@pytest.mark.parametrize("given", [X[:7], (X[:7],), (X[:7], Y[:7]), TensorDataset(X[:7]), X[:7].numpy()])
def test_predictions_need_no_targets(given):
    found = run(network(), (X, Y))
    torch.testing.assert_close(found.predict(given), found.model.eval()(X[:7]).detach())
    with pytest.raises(ValueError, match="must have 1 inputs, and targets or none, got 3 tensors"):
        found.predict((X, X, Y))


class PerEntry(nn.Module):
    """Classes of every entry of a sequence, along the axis that a test says."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.map = axis, nn.Linear(4, 3)

    def forward(self, x):
        return self.map(x).movedim(-1, self.axis)


@pytest.mark.parametrize(("axis", "length", "told"), [(1, 7, True), (2, 7, True), (1, 3, False), (2, 3, False)])
def test_the_accuracy_of_sequences_is_along_the_axis_of_classes(axis, length, told):
    """With as many entries as classes either axis could be meant, and none is guessed."""
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, length, 4, generator=random), torch.randint(0, 3, (20, length), generator=random)

    def loss(outputs, targets):
        return functional.cross_entropy(outputs.movedim(axis, 1), targets)

    found = run(PerEntry(axis), (x, y), loss)
    expected = float((found.model(x).argmax(axis) == y).double().mean())
    assert found.metrics.get("train_accuracy") == (pytest.approx(expected) if told else None)


def test_running_statistics_come_from_batches_of_more_than_one_sample():
    net = network(nn.Linear(4, 4), nn.BatchNorm1d(4))
    found = run(net, DataLoader(TensorDataset(X[:17], Y[:17]), batch_size=16))
    assert {"train_loss", "train_accuracy"} <= set(found.metrics)
    assert found.model is net and float(net[1].num_batches_tracked) == 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_that_a_loader_always_drops_are_not_trained_on(shuffle):
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, drop_last=True, shuffle=shuffle)
    problem = SupervisedProblem(network(), loader, functional.cross_entropy)
    assert len(problem.samples) == (50 if shuffle else 48)
    kept = set(map(tuple, problem.samples.stacked[0].tolist()))
    assert kept == set(map(tuple, X[: len(problem.samples)].tolist()))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ({"train": (X, Y), "val": (X, Y)}, {}, "must be those for train, validation, test, got train val"),
        ((X, Y), {"split": {"train": range(40), "test": range(30, 50)}}, "name every sample once, got one for several"),
        ((X, Y), {"split": {"test": [3, 3]}}, "different numbers"),
    ],
)
def test_splits_that_divide_nothing_are_refused(data, options, said):
    with pytest.raises(ValueError, match=said):
        run(network(), data, **options)
    found = run(network(), (X, Y), split={"test": slice(40, 50)})
    expected = functional.cross_entropy(found.model(X[40:]), Y[40:])
    assert found.metrics["test_loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


def square(outputs, targets):
    return (outputs - targets).square().mean()


def test_a_column_of_outputs_is_not_paired_with_all_targets():
    with pytest.raises(ValueError, match=r"shape \(8, 1\) and targets of \(8,\), which it pairs each with all"):
        SupervisedProblem(network(outputs=1), (X, X[:, 0]), square)
    problem = SupervisedProblem(network(outputs=1), (X, X[:, :1]), square)
    expected = float(square(problem.net(X), X[:, :1]).detach())
    assert float(problem.objective().value(problem.initial())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [functional.nll_loss, nn.NLLLoss()])
def test_logits_are_no_logarithms_of_probabilities(loss):
    with pytest.raises(ValueError, match="nll_loss takes logarithms of probabilities, .* or take cross_entropy"):
        SupervisedProblem(network(), (X, Y), loss)
    net = nn.Sequential(network(), nn.LogSoftmax(1))
    problem = SupervisedProblem(net, (X, Y), loss)
    expected = float(functional.cross_entropy(net[0](X), Y).detach())
    assert float(problem.objective().value(problem.initial())) == pytest.approx(expected, rel=1e-6)


def test_probabilities_in_the_place_of_logits_are_said():
    with pytest.warns(UserWarning, match="takes logits, got outputs that look like probabilities"):
        SupervisedProblem(nn.Sequential(network(), nn.Softmax(1)), (X, Y), functional.cross_entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SupervisedProblem(nn.Sequential(network(), nn.LogSoftmax(1)), (X, Y), functional.cross_entropy)


@pytest.mark.parametrize("place", [0, 1])
def test_samples_whose_loss_is_no_number_are_counted(place):
    data = [X.clone(), X[:, :1].clone()]
    data[place][3:5] = torch.nan
    with pytest.raises(ValueError, match="the loss must be finite at the start, got nan .* 2 samples"):
        SupervisedProblem(network(outputs=1), tuple(data), functional.mse_loss)

    def known(outputs, targets):
        there = targets.isfinite()
        return functional.mse_loss(outputs[there], targets[there])

    if place == 1:
        problem = SupervisedProblem(network(outputs=1), tuple(data), known)
        expected = float(known(problem.net(X), data[1]).detach())
        assert float(problem.objective().value(problem.initial())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "said"), [(9_999, 1), (10_001, 2)])
def test_data_that_go_on_and_on_are_said(count, said):
    batches = ((X[:1], Y[:1]) for _ in range(count))
    with pytest.warns(UserWarning) as seen:
        problem = SupervisedProblem(network(), batches, functional.cross_entropy)
    assert len(problem.samples) == count and len(seen) == said
    assert said == 1 or "have given 10000 batches and go on" in str(seen[0].message)
