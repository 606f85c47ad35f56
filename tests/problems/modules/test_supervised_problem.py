"""Any torch module and data: losses of a plain loop, modules left alone, parts and levels of samples, layers."""

import copy
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import mldd
from mldd.algebra import sampled
from mldd.loop import Stop, minimise
from mldd.problems.images import Digits
from mldd.problems.modules import SupervisedProblem
from mldd.solvers import Adam, MultilevelAdaGrad, NonlinearSchwarz

N = 60


def data(seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 4, generator=random, dtype=torch.float64)
    return x, (x[:, :3] + 0.1 * torch.randn(N, 3, generator=random, dtype=torch.float64)).argmax(1)


def net(dropout=0.0, norm=False):
    torch.manual_seed(0)
    more = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *more, nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)).double()


def problem(given=None, loss=functional.cross_entropy, dropout=0.0, norm=False, **options):
    return SupervisedProblem(net(dropout, norm), data() if given is None else given, loss, **options)


FORMS = {
    "tensors": data,
    "dataset": lambda: TensorDataset(*data()),
    "loader": lambda: DataLoader(TensorDataset(*data()), batch_size=N, shuffle=True),
    "list of pairs": lambda: [(x, int(y)) for x, y in zip(*data(), strict=True)],
}


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_are_those_of_a_plain_loop(form):
    p = problem(FORMS[form]())
    x = p.initial(0)
    value, g = p.objective().value_and_gradient(x)
    module, (inputs, targets) = net(), data()
    loss = functional.cross_entropy(module(inputs), targets)
    expected = torch.cat([d.flatten() for d in torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-14)
    v, h = torch.linspace(-1, 1, len(x), dtype=x.dtype), 1e-5
    f = p.objective()
    differences = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    torch.testing.assert_close(f.hessian_product(x, v), differences, rtol=1e-6, atol=1e-9)


def test_evaluations_leave_the_module_alone_and_the_result_is_written_into_it():
    p = problem(dropout=0.3, norm=True, batch=20)
    before, state = copy.deepcopy(p.net.state_dict()), torch.get_rng_state()
    f, x = p.objective(), p.initial(0)
    sampled(f, 3).value_and_gradient(x)
    p.metrics(x)
    assert all(torch.equal(v, before[key]) for key, v in p.net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    result = minimise(f, x, Adam(0.02), stop=Stop(60))
    trained = p.module(result.x)
    assert trained is p.net
    right = (trained.eval()(data()[0]).argmax(1) == data()[1]).double().mean()
    assert float(right) == pytest.approx(p.metrics(result.x)["train_accuracy"], abs=0.02) and right > 0.8


def test_mini_batches_are_those_of_the_loader_seeded_by_step():
    p = problem(DataLoader(TensorDataset(*data()), batch_size=15, shuffle=True))
    f, x = p.objective(), p.initial(0)
    values = [float(sampled(f, step).value(x)) for step in (0, 0, 1, 2, 3)]
    assert values[0] == values[1] != values[2]
    assert sum(values[1:]) / 4 == pytest.approx(float(f.value(x)), rel=1e-12), "an epoch sees every sample once"


def test_parts_of_the_data_are_the_means_over_their_samples_and_first_order_consistent():
    p = problem(subdomains="data")
    f, x = p.objective(), p.initial(0) + 0.1
    d = p.decomposition(3)
    y, g = d.gather(x), f.gradient(x)
    plain = d.models(f, x, None).gradient(y)
    torch.testing.assert_close(plain.mean(0), g, rtol=1e-10, atol=1e-14)
    corrected = d.models(f, x, g).gradient(y)
    torch.testing.assert_close(corrected, g.expand_as(corrected), rtol=1e-10, atol=1e-14)
    both = problem(subdomains="both").decomposition(2)
    assert both.parts == 4


def test_levels_have_fewer_data_and_layers_are_subdomains():
    p = problem()
    h = p.hierarchy(3)
    x = p.initial(0)
    assert [level.work for level in h.levels] == [1.0, 0.5, 0.25]
    rows = p.samples.take(torch.arange(15))
    expected = functional.cross_entropy(p.net(rows[0]), rows[1])
    torch.testing.assert_close(h[2].objective.value(x), expected.detach())
    f = p.objective()
    for solver in (MultilevelAdaGrad(h), NonlinearSchwarz(p.decomposition(2, 0))):
        assert float(f.value(minimise(f, x, solver, stop=Stop(10)).x)) < float(f.value(x))


def test_the_numbers_are_those_of_the_built_in_digits():
    digits = Digits(hidden="8", samples=200)
    x = digits.initial(0)
    inputs, targets = (rows[:200] for rows in digits._permuted)
    targets = targets.argmax(1) if targets.dim() > 1 else targets
    mine = SupervisedProblem(digits.module(x), (inputs, targets), functional.cross_entropy)
    torch.testing.assert_close(mine.initial(0), x)
    for a, b in zip(mine.objective().value_and_gradient(x), digits.objective().value_and_gradient(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_a_loss_of_network_and_batch_may_differentiate_inside():
    def loss(net, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return slope.square().mean()

    p = SupervisedProblem(net(), data(), loss, batch=0)
    x = p.initial(0)
    f = p.objective()
    v, h = torch.linspace(-1, 1, len(x), dtype=x.dtype), 1e-6
    slope = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
    torch.testing.assert_close(f.gradient(x) @ v, slope, rtol=1e-6, atol=1e-9)


def test_scores_of_validation_data():
    p = problem({"train": data(), "validation": data(1)})
    x = p.initial(0)
    found = p.metrics(x)
    inputs, targets = data(1)
    out = net()(inputs)
    assert found["validation_loss"] == pytest.approx(float(functional.cross_entropy(out, targets)))
    assert found["validation_accuracy"] == pytest.approx(float((out.argmax(1) == targets).double().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 61}, "`batch` must be in 0..60"),
        (
            {"given": (torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))},
            r"take float64 \(3, 5\), got",
        ),
        ({"given": (torch.zeros(3, 4), torch.zeros(2))}, "one row per sample"),
        ({"loss": 3}, "needs a module, data and a loss"),
        ({"subdomains": "graph"}, "`subdomains` must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        problem(**options)


def test_a_network_and_samples_are_trained_in_one_call():
    run = mldd.train(net(), data(), loss=functional.cross_entropy, solver="apts", subdomains="data", parts=3, steps=10)
    assert run.metrics["train_accuracy"] > 0.6 and run.model is run.problem.net


CLASS = """
    import torch
    from dataclasses import dataclass
    from torch import nn
    from mldd.problems import SupervisedProblem

    @dataclass(frozen=True)
    class Mine(SupervisedProblem):
        width: int = 4

        def make(self):
            x = torch.linspace(-1, 1, 40)[:, None]
            net = nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))
            return net, (x, x.sin()), nn.functional.mse_loss
"""


@pytest.mark.parametrize("subdomains", ["data", "layers"])
def test_a_class_of_ones_own_is_a_problem_of_the_command_line(run, tmp_path, monkeypatch, subdomains):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(CLASS))
    code, out, error = run(
        f"train mine.py:Mine:width=7,subdomains={subdomains} --solver dd-adagrad --parts 2 --steps 20"
    )
    assert code == 0, error
    assert "loss" in out
