"""Any module on any data: runs of torch and Digits step by step, coupled samples, kinds of losses, data and loaders."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from mldd.algebra import counting, sampled
from mldd.loop import Stop, minimise
from mldd.problems import SupervisedProblem
from mldd.problems.images import Digits
from mldd.problems.nets import MiniBatches
from mldd.solvers import AdaGrad, Adam, LocalSgd, NonlinearSchwarz, Sgd

ce = nn.functional.cross_entropy


def samples(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def normed(*, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def by_torch(net, data, x, loss=ce):
    """Loss and gradient of a copy of the net with parameters x, by torch alone."""
    with torch.no_grad():
        nn.utils.vector_to_parameters(x, net.parameters())
    value = loss(net(data[0]), data[1])
    return value.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))])


def start(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def test_adam_makes_the_steps_of_torch():
    net, data, twin = plain(), samples(), plain()
    problem = SupervisedProblem(net, data, ce)
    result = minimise(problem.objective(), problem.initial(), Adam(0.01), stop=Stop(20))
    optimizer = torch.optim.Adam(twin.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        ce(twin(data[0]), data[1]).backward()
        optimizer.step()
    torch.testing.assert_close(result.x, start(twin), rtol=1e-9, atol=1e-11)
    assert problem.module(result.x) is net and torch.equal(start(net), result.x)
    found = problem.metrics(result.x)
    assert found["train_loss"] == pytest.approx(float(ce(twin(data[0]), data[1]).detach()))
    assert found["train_accuracy"] == pytest.approx(float((twin(data[0]).argmax(1) == data[1]).double().mean()))


# ------------------------------------------------------------------------------------------------ as Digits


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return Digits(hidden="16-8", samples=201, batch=40)


def the_same(digits, **options):
    """Digits as a module and a loader: given in an order that becomes that of Digits where samples are divided."""
    images, labels = (of_all[: digits.samples] for of_all in digits._permuted)
    inverse = torch.empty(digits.samples, dtype=torch.int64)
    order = torch.randperm(digits.samples, generator=torch.Generator().manual_seed(0))
    inverse[order] = torch.arange(digits.samples)
    net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    nn.utils.vector_to_parameters(digits.initial(0), net.parameters())
    loader = DataLoader(TensorDataset(images[inverse], labels[inverse]), batch_size=40, shuffle=True)
    return SupervisedProblem(net, loader, ce, **options)


@pytest.mark.parametrize("of_data", [False, True])
def test_numbers_of_digits(digits, of_data):
    digits = replace(digits, subdomains="data" if of_data else "parameters")
    problem = the_same(digits, subdomains="data" if of_data else "layers")
    x = digits.initial(0)
    assert torch.equal(problem.initial(0), x)
    close = {"rtol": 1e-9, "atol": 1e-13}
    torch.testing.assert_close(problem.objective().value(x), digits.objective().value(x), **close)
    for step in (0, 1, 7):
        f, g = digits.objective(step), problem.objective(step)
        assert torch.equal(f.drawn.rows, g.drawn.rows)
        torch.testing.assert_close(g.gradient(x), f.gradient(x), **close)
        d, e = digits.decomposition(3, 1), problem.decomposition(3, 1)
        y = d.gather(x) + 0.01
        for gradient in (None, f.gradient(x)):
            ours, theirs = e.models(g, x, gradient), d.models(f, x, gradient)
            for a, b in zip(ours.value_and_gradient(y), theirs.value_and_gradient(y), strict=True):
                torch.testing.assert_close(a, b, **close)
        assert torch.equal(d.weights(d.usual), e.weights(e.usual))
    for ours, theirs in zip(problem.hierarchy(3).levels, digits.hierarchy(3).levels, strict=True):
        ours, theirs = sampled(ours.objective, 3), sampled(theirs.objective, 3)
        with counting() as cost:
            g = ours.gradient(x)
        with counting() as expected:
            torch.testing.assert_close(g, theirs.gradient(x), **close)
        assert cost == expected


def test_runs_of_digits(digits):
    digits = replace(digits, subdomains="data")
    problem = the_same(digits, subdomains="data")

    def run(p):
        solver = LocalSgd(p.decomposition(3, 4), Sgd(0.1, 0.9), local_steps=3)
        return minimise(p.objective(), digits.initial(0), solver, stop=Stop(6)).x

    torch.testing.assert_close(run(problem), run(digits), rtol=1e-8, atol=1e-11)


# ------------------------------------------------------------------------------------------------ coupled samples


def test_batch_normalisation_and_dropout():
    data, net = samples(), normed(dropout=0.5)
    net[1].running_mean.fill_(3.0)
    problem = SupervisedProblem(net, {"train": data, "validation": samples(9, seed=1)}, ce)
    assert problem.model.kind == "mean" and problem.model.statistics and problem.model.noisy
    f, x = problem.objective(), problem.initial()
    twin = normed(dropout=0.0)  # the objective itself is without dropout, with the statistics of the batch
    torch.testing.assert_close(f.value(x), ce(twin(data[0]), data[1]).detach(), rtol=1e-12, atol=0)
    first, again, other = f.sample(0), f.sample(0), f.sample(1)
    assert torch.equal(first.gradient(x), again.gradient(x)) and not torch.equal(first.gradient(x), other.gradient(x))
    assert bool((net[1].running_mean == 3.0).all()) and net.training and net[3].training
    found = problem.metrics(x + 0.1)
    assert bool((net[1].running_mean == 3.0).all()) and net.training
    assert problem.module(x + 0.1) is net and net.training
    hidden = net[0](data[0]).detach()
    torch.testing.assert_close(net[1].running_mean, hidden.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net[1].running_var, hidden.var(0), rtol=1e-10, atol=1e-12)
    net.eval()
    checked = samples(9, seed=1)
    assert found["validation_loss"] == pytest.approx(float(ce(net(checked[0]), checked[1])))
    torch.testing.assert_close(problem.objective().value(x), f.value(x))  # modes are those of the start


def test_modes_are_those_of_the_start():
    data, net = samples(), normed()
    net[1].eval()
    problem = SupervisedProblem(net, data, ce)
    assert problem.model.kind == "mean" and not problem.model.noisy
    twin = normed()
    twin[1].eval()
    torch.testing.assert_close(problem.objective().value(problem.initial()), ce(twin(data[0]), data[1]).detach())
    net.train()
    torch.testing.assert_close(problem.objective().value(problem.initial()), ce(twin(data[0]), data[1]).detach())


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (nn.CrossEntropyLoss(), "mean"),
        (nn.CrossEntropyLoss(reduction="sum"), "sum"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)), "mean"),
        (nn.CrossEntropyLoss(ignore_index=1), "mean"),
        (partial(ce, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)), "mean"),
        (lambda outputs, targets: ce(outputs, targets).square(), "whole"),
        (lambda net, batch: ce(net(batch[0]), batch[1]), "mean"),
    ],
)
def test_how_losses_depend_on_samples(loss, kind):
    problem = SupervisedProblem(plain(), samples(), loss, subdomains="data")
    assert problem.model.kind == kind
    x, d = problem.initial(), problem.decomposition(2)
    f, data = problem.objective(), samples()
    models = d.models(f, x, None)
    if kind == "sum":  # a half stands for all
        torch.testing.assert_close(models.value(d.gather(x)).mean(), f.value(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(problem.hierarchy(2)[1].objective.value(x), models.value(d.gather(x))[0])
    expected = ce(plain()(data[0]), data[1]) if problem._sees_module else loss(plain()(data[0]), data[1])
    torch.testing.assert_close(f.value(x), expected.detach(), rtol=1e-12, atol=0)
    g = f.gradient(x)
    torch.testing.assert_close(d.models(f, x, g).gradient(d.gather(x)), g.expand(2, -1), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------ subdomains


def test_layers_and_data_together():
    problem = SupervisedProblem(plain(), samples(), ce, subdomains="both", groups=[("0", "2"), "4"])
    f, x, d = problem.objective(), problem.initial(), problem.decomposition(2)
    assert d.parts == 4 and problem.layers.names == ("0+2", "4")
    g = f.gradient(x)
    y = d.gather(x) + 0.1 * d.valid
    values, gradients = d.models(f, x, g).value_and_gradient(y)
    ordered = [t[torch.randperm(40, generator=torch.Generator().manual_seed(0))] for t in samples()]
    for k in range(4):
        half = [t[20 * (k // 2) : 20 * (k // 2) + 20] for t in ordered]
        own, at_start = by_torch(plain(), half, y[k]), by_torch(plain(), half, x)
        valid = torch.zeros(59 + 15, dtype=torch.bool)
        valid[slice(0, 59) if k % 2 == 0 else slice(59, None)] = True
        delta = torch.where(valid, g, 0) - at_start[1]
        torch.testing.assert_close(gradients[k], own[1] + delta, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(values[k], own[0] + delta @ (y[k] - x), rtol=1e-9, atol=1e-12)
        assert torch.equal(d.valid[k], valid)
    solver = NonlinearSchwarz(d, local=AdaGrad(rate=0.05), local_steps=5)
    assert float(f.value(minimise(f, x, solver, stop=Stop(10)).x)) < float(f.value(x)) - 0.01


# ------------------------------------------------------------------------------------------------ kinds of data


class Rows(Dataset):
    def __init__(self, *, noise=False):
        self.inputs, self.targets = samples()
        self.noise = noise

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.inputs[i] + (torch.randn(6) if self.noise else 0), int(self.targets[i])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(zip(*samples(), strict=True)))


def as_numpy():
    return tuple(t.numpy() for t in samples())


@pytest.mark.parametrize(
    "data",
    [samples(), as_numpy(), Rows(), TensorDataset(*samples()), DataLoader(Rows(), 8, shuffle=True)],
    ids=["tensors", "numpy", "dataset", "tensor dataset", "loader"],
)
def test_all_kinds_of_data_are_the_same_samples(data):
    problem = SupervisedProblem(plain(), data, ce)
    x = problem.initial()
    torch.testing.assert_close(problem.objective().value(x), by_torch(plain(), samples(), x)[0], rtol=1e-12, atol=0)
    rows = MiniBatches(40, 8, key=(0, 0, 0)).rows(3)
    if isinstance(data, DataLoader):
        ordered = [t[torch.randperm(40, generator=torch.Generator().manual_seed(0))][rows] for t in samples()]
        expected = by_torch(plain(), ordered, x)[0]
        torch.testing.assert_close(problem.objective(3).value(x), expected, rtol=1e-12, atol=0)
    else:
        assert not hasattr(problem.objective(), "sample")


def test_loaders_that_are_asked_once_say_so():
    with pytest.warns(UserWarning, match="IterableDataset was asked once: the 5 batches that it gave are the data"):
        problem = SupervisedProblem(plain(), DataLoader(Stream(), batch_size=8), ce, batch=0)
    x = problem.initial()
    torch.testing.assert_close(problem.objective().value(x), by_torch(plain(), samples(), x)[0], rtol=1e-12, atol=0)
    drawn = WeightedRandomSampler(torch.arange(40.0), 16)
    with pytest.warns(UserWarning, match="sampler of its own was asked once"):
        problem = SupervisedProblem(plain(), DataLoader(Rows(), batch_size=8, sampler=drawn), ce)
    assert len(problem.samples) == 16 and problem.objective(0).drawn.rows.shape == (8,)
    with pytest.warns(UserWarning, match="Rows change whenever they are asked for"):
        SupervisedProblem(plain(), Rows(noise=True), ce)


def collate(items):
    return {"x": [x for x, _ in items], "y": torch.tensor([y for _, y in items])}


def ragged(net, batch):
    return ce(net(torch.stack(batch["x"])), batch["y"])


def test_batches_of_a_collate_function_are_taken_as_they_are():
    with pytest.warns(UserWarning, match="collate_fn of your own was asked once: the 5 batches .* used as a whole"):
        problem = SupervisedProblem(plain(), DataLoader(Rows(), 8, collate_fn=collate), ragged, subdomains="data")
    x = problem.initial()
    torch.testing.assert_close(problem.objective().value(x), by_torch(plain(), samples(), x)[0], rtol=1e-12, atol=0)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        k = int(order[problem.objective(step).drawn.rows])
        part = [t[8 * k : 8 * k + 8] for t in samples()]
        torch.testing.assert_close(problem.objective(step).gradient(x), by_torch(plain(), part, x)[1])
    full = replace(problem, batch=0)
    d = full.decomposition(2)
    assert [len(f.rows) for f in d.models(full.objective(), x, None).losses] == [2, 3]
    with pytest.raises(ValueError, match=r"`levels` must be in 1\.\.1 for 1 batches of the loader of a step, got 2"):
        problem.hierarchy(2)


# ------------------------------------------------------------------------------------------------ starts, refusals


def test_starts_of_other_seeds():
    problem = SupervisedProblem(plain(), samples(), ce, seed=3)
    x = problem.initial()
    assert torch.equal(problem.initial(3), x) and torch.equal(problem.initial(4), problem.initial(4))
    torch.manual_seed(4)
    twin = plain()
    torch.manual_seed(4)
    for layer in twin:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert torch.equal(problem.initial(4), start(twin)) and not torch.equal(problem.initial(4), x)
    own = nn.Module()
    own.weight = nn.Parameter(torch.ones(6, 3, dtype=torch.float64))
    own.forward = lambda x: x @ own.weight
    with pytest.raises(ValueError, match=r"reset_parameters\(\)` of every module inside, got none that sets weight"):
        SupervisedProblem(own, samples(), ce).initial(1)


def test_refuses():
    for options, words in (
        ({"subdomains": "graph"}, "`subdomains` must be one of layers, data, both"),
        ({"batch": 41}, r"`batch` must be in 0\.\.40"),
        ({"data": (torch.ones(3, 2), torch.ones(4))}, "one row per sample"),
        ({"data": torch.zeros(0, 2)}, "the data must have a sample, got none"),
        ({"data": samples()[0]}, r"needs samples with targets, got Tensor; give `loss\(net, batch\)`"),
        ({"data": (samples()[0].float(), samples()[1])}, r"with float64 parameters must take float32 \(40, 6\)"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "`loss` must return one number"),
        ({"data": [torch.ones(2), "text"]}, "must be tensors of equal shapes"),
        ({"data": 3}, "the data must be a tuple of tensors"),
    ):
        with pytest.raises(ValueError, match=words):
            SupervisedProblem(**({"net": plain(), "data": samples(), "loss": ce} | options))
    with pytest.raises(ValueError, match=r"SupervisedProblem needs `net`, `data` and `loss`; give them, or add"):
        SupervisedProblem()
    problem = SupervisedProblem(plain(), samples(), ce, subdomains="data")
    for call, words in (
        (lambda: problem.decomposition(41), r"`parts` must be in 1\.\.40 \(the samples of a step\), got 41"),
        (lambda: problem.decomposition(2, -1), "`overlap` must be >= 0"),
        (lambda: problem.hierarchy(6), r"`levels` must be in 1\.\.5 for 40 samples"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_no_warning_where_nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SupervisedProblem(plain(), DataLoader(Rows(), 8, shuffle=True), ce).metrics(start(plain()))
