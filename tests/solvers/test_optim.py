"""Solvers of mldd as torch optimizers: plain loops, Lightning, groups, bounds, schedulers, saving, bad closures."""

import copy
import io
import math
import pickle
import warnings
from functools import partial
from operator import attrgetter

import pytest
import torch
from torch import nn

from mldd.algebra import ModuleObjective, counting
from mldd.loop import Status, Stop, minimise
from mldd.solvers import (
    LBFGS,
    AdaGrad,
    Adam,
    NewtonCG,
    NonlinearSchwarz,
    Optimizer,
    SchwarzAdaGrad,
    Sgd,
    TorchAdaGrad,
    TrustRegion,
)


def network(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)).to(dtype)


def data(module, rows=20):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64).to(next(module.parameters()).dtype)
    return inputs, inputs.prod(1, keepdim=True)


def closure_of(module, optimizer, inputs, targets):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        return loss

    return closure


def train(module, optimizer, steps, rows=20):
    closure = closure_of(module, optimizer, *data(module, rows))
    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("solver", "theirs"),
    [
        (Adam(0.01), partial(torch.optim.Adam, lr=0.01)),
        (Sgd(0.1, 0.9, True), partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)),
        (TorchAdaGrad(0.1), partial(torch.optim.Adagrad, lr=0.1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_first_order_methods_are_those_of_torch(solver, theirs, dtype):
    ours, module = network(dtype), network(dtype)
    losses = train(ours, Optimizer(ours.parameters(), solver), 20)
    assert losses == train(module, theirs(module.parameters()), 20)
    assert torch.equal(flat(ours), flat(module))


@pytest.mark.parametrize("solver", [LBFGS(), AdaGrad(rate=0.1), AdaGrad(rate=0.1, curvature="exact")])
def test_a_training_loop_is_the_loop_of_mldd(solver):
    module, other = network(), network()
    inputs, targets = data(module)
    f = ModuleObjective(other, lambda m: nn.functional.mse_loss(m(inputs), targets))
    expected = minimise(f, f.initial(), solver, stop=Stop(8)).x
    train(module, Optimizer(module.parameters(), solver), 8)
    # Hessian products are differences of gradients here.
    torch.testing.assert_close(flat(module), expected, rtol=0, atol=1e-5 if "exact" in str(solver) else 1e-12)


def test_lbfgs_fits_and_evaluates_several_times():
    module = network()
    optimizer = Optimizer(module.parameters(), LBFGS())
    with counting() as cost:
        losses = train(module, optimizer, 60)
    assert losses[-1] < 0.1 * losses[0]
    assert cost.gradients > 60
    assert optimizer.status is None
    assert optimizer.solver_state.step == 60


def test_tao_as_an_optimizer():
    pytest.importorskip("petsc4py")
    pytest.importorskip("greenlet")
    from mldd.solvers.petsc import Tao

    module = network()
    optimizer = Optimizer(module.parameters(), Tao("lmvm"))
    assert copy.deepcopy(optimizer).solver_state is None
    losses = train(module, optimizer, 30)
    assert losses[-1] < 0.1 * losses[0]
    for attempt in (optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
        with pytest.raises(ValueError, match="the state of Tao lives outside of Python .* save the module alone"):
            attempt()


# ------------------------------------------------------------------------------------------------ groups


def groups(module, **options):
    return [{"params": module[0].parameters()}, {"params": module[3].parameters(), **options}]


def test_groups_are_subdomains():
    module = network()
    seen = []

    def make(decomposition):
        seen.append(decomposition)
        return NonlinearSchwarz(decomposition, local=LBFGS(), local_steps=3)

    optimizer = Optimizer(groups(module), make)
    (decomposition,) = seen
    assert [s.indices.tolist() for s in decomposition.subdomains] == [list(range(24)), list(range(24, 31))]
    assert len(decomposition.blocks) == 4
    inputs, targets = data(module)
    closure = closure_of(module, optimizer, inputs, targets)
    before = flat(module)
    f = ModuleObjective(network(), lambda m: nn.functional.mse_loss(m(inputs), targets))
    expected = minimise(
        f, before.clone(), NonlinearSchwarz(decomposition, local=LBFGS(), local_steps=3), stop=Stop(3)
    ).x
    for _ in range(3):
        optimizer.step(closure)
    torch.testing.assert_close(flat(module), expected, rtol=0, atol=1e-11)


def test_groups_of_their_own_bounds():
    module = network()
    optimizer = Optimizer(groups(module, lower=-0.1, upper=0.1), AdaGrad(rate=0.1))
    losses = train(module, optimizer, 30)
    assert losses[-1] < losses[0]
    assert max(float(p.detach().abs().max()) for p in module[3].parameters()) == pytest.approx(0.1)
    assert float(module[0].weight.detach().abs().max()) > 0.1
    optimizer.param_groups[1]["upper"] = 0.05  # as a schedule may do
    train(module, optimizer, 2)
    assert max(float(p.detach().max()) for p in module[3].parameters()) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="lower <= upper"):
        Optimizer([{"params": module.parameters(), "lower": 1.0, "upper": 0.0}], AdaGrad())


def test_groups_can_be_added_before_the_first_step():
    module = network()
    optimizer = Optimizer(module[0].parameters(), partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1)))
    optimizer.add_param_group({"params": module[3].parameters()})
    losses = train(module, optimizer, 5)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="before the first step"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1, dtype=torch.float64))]})


@pytest.mark.parametrize(
    ("solver", "field"),
    [
        (Sgd(0.2), "lr"),
        (AdaGrad(rate=0.2), "rate"),
        (partial(SchwarzAdaGrad, local=AdaGrad(rate=0.2)), "local.rate"),
        (partial(NonlinearSchwarz, local=Sgd(0.2)), "local.lr"),
    ],
)
def test_schedulers_change_the_rate(solver, field):
    module, other = network(), network()
    optimizer, theirs = Optimizer(module.parameters(), solver), torch.optim.SGD(other.parameters(), lr=0.2)
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=3) for o in (optimizer, theirs)]
    rates, points = [], []
    for _ in range(5):
        for m, o, schedule in zip((module, other), (optimizer, theirs), schedules, strict=True):
            train(m, o, 1)
            schedule.step()
        rates.append(attrgetter(field)(optimizer._solver))
        points.append(flat(module))
    assert rates == pytest.approx([0.2, 0.2 * 2 / 3, 0.2 / 3, 0.2 / 3, 0.2 / 3])
    assert torch.equal(points[2], points[4])  # a rate of zero
    assert field != "lr" or torch.equal(flat(module), flat(other))
    optimizer.param_groups.append({"params": [], "lr": 0.1})
    with pytest.raises(ValueError, match=r"`lr` must be the same for all groups of parameters, got \[0.0, 0.1\]"):
        train(module, optimizer, 1)


# ------------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize(
    "solver",
    [
        Adam(0.01),
        LBFGS(),
        TrustRegion(),
        NewtonCG(),
        AdaGrad(rate=0.1, curvature="lbfgs"),
        partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1)),
        lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2),
    ],
)
def test_resumed_is_uninterrupted(solver):
    module = network()
    optimizer = Optimizer(groups(module), solver)
    train(module, optimizer, 5)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(module, optimizer, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network()
    resumed = Optimizer(groups(again), solver)
    again.load_state_dict(saved["module"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.state_dict()["mldd"]["state"]["step"] == 5
    assert train(again, resumed, 5) == expected
    assert torch.equal(flat(again), flat(module))
    assert resumed.solver_state.step == 10
    with pytest.raises(ValueError, match="`state_dict` must be that of TorchAdaGrad, got "):
        Optimizer(groups(network()), TorchAdaGrad()).load_state_dict(saved["optimizer"])
    with pytest.raises(ValueError, match="got that of another optimizer"):
        resumed.load_state_dict(torch.optim.Adam(groups(network())).state_dict())


def test_a_fresh_optimizer_can_be_saved():
    optimizer = Optimizer(network().parameters(), Adam())
    other = Optimizer(network().parameters(), Adam())
    other.load_state_dict(optimizer.state_dict())
    assert other.solver_state is None


def test_parameters_loaded_or_moved_between_steps_are_taken_over():
    module, other = network(), network()
    ours, theirs = Optimizer(module.parameters(), Sgd(0.1)), torch.optim.SGD(other.parameters(), lr=0.1)
    for m, o in ((module, ours), (other, theirs)):
        train(m, o, 2)
        m[0].weight.data = torch.full((6, 3), 0.1, dtype=torch.float64)
        m[3].load_state_dict({key: value / 2 for key, value in m[3].state_dict().items()})
        train(m, o, 2)
    assert torch.equal(flat(module), flat(other))
    module.float()
    with pytest.raises(
        ValueError, match="must stay torch.float64 of .* got torch.float32 .*make the optimizer or objective after"
    ):
        train(module, ours, 1)


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_closure_that_is_not_deterministic_is_told_once():
    module = network(dropout=0.5)
    optimizer = Optimizer(module.parameters(), LBFGS())
    with pytest.warns(UserWarning, match="the closure must give the same at the same parameters, got loss") as told:
        train(module, optimizer, 8)
    assert sum("the closure" in str(w.message) for w in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(module, Optimizer(module.parameters(), Adam()), 3)  # evaluates once: nothing to compare
        module.eval()
        train(module, Optimizer(module.parameters(), LBFGS()), 3)


@pytest.mark.parametrize("leftover", [False, True])
@pytest.mark.parametrize("solver", [LBFGS(), TrustRegion()])
def test_gradients_that_pile_up_are_refused(solver, leftover):
    module = network()
    optimizer = Optimizer(module.parameters(), solver)
    inputs, targets = data(module)

    def closure():
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        return loss

    if leftover:
        closure()
    before = flat(module)
    with pytest.raises(ValueError, match=r"the closure must clear all gradients .*zero_grad\(\) .*batches"):
        for _ in range(3):
            optimizer.step(closure)
    assert torch.equal(flat(module), before)


def test_float32_is_told_where_values_are_compared():
    module = network(torch.float32)
    with pytest.warns(
        UserWarning, match=r"LBFGS compares function values, got torch.float32.*module.double\(\)"
    ) as told:
        train(module, Optimizer(module.parameters(), LBFGS()), 3)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(module, Optimizer(module.parameters(), LBFGS(), check=False), 3)


def test_divergence_goes_back_to_the_last_good_point_and_starts_anew():
    module = network()
    optimizer = Optimizer(module.parameters(), Sgd(0.1, 0.9))
    inputs, targets = data(module)
    good = closure_of(module, optimizer, inputs, targets)
    optimizer.step(good)
    before = flat(module)
    optimizer.step(good)
    with pytest.warns(UserWarning, match="Sgd: gradient or objective is not finite"):
        loss = optimizer.step(closure_of(module, optimizer, inputs * math.inf, targets))
    assert math.isnan(loss) and optimizer.status is Status.diverged
    assert torch.equal(flat(module), before)
    optimizer.step(good)
    assert optimizer.status is None and optimizer.solver_state.step == 3


def test_a_solver_that_stalls_says_so():
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = Optimizer(module.parameters(), LBFGS())

    def lying():
        optimizer.zero_grad()
        loss = module.weight.square().sum()
        (-loss).backward()
        return loss

    before = flat(module)
    with pytest.warns(UserWarning, match="LBFGS: the solver cannot improve the point"):
        optimizer.step(lying)
    assert optimizer.status is Status.stalled
    assert torch.equal(flat(module), before)


def test_an_error_in_the_closure_leaves_the_parameters_at_the_start_of_the_step():
    module = network()
    optimizer = Optimizer(module.parameters(), LBFGS())
    train(module, optimizer, 2)
    closure, before, calls = closure_of(module, optimizer, *data(module)), flat(module), []

    def failing():
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    assert torch.equal(flat(module), before)


def test_refuses():
    module = network()
    optimizer = Optimizer(module.parameters(), Adam())
    inputs, _ = data(module)

    def vector():
        losses = module(inputs).square()
        losses.sum().backward()
        return losses

    mixed = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    for attempt, words in (
        (lambda: optimizer.step(), r"a step needs gradients .* got none; call loss.backward\(\)"),
        (lambda: optimizer.step(lambda: module(inputs).sum()), "a step needs gradients .* got none"),
        (lambda: optimizer.step(vector), r"the closure must return one number, got shape \(20, 1\)"),
        (lambda: Optimizer(module.parameters(), "adam"), "`solver` must be a solver of mldd .*got str"),
        (lambda: Optimizer(module.parameters(), lambda d: None), "`solver` must be a solver of mldd .*got NoneType"),
        (lambda: Optimizer(groups(module, lr=1.0), Sgd()), r"`lr` must be the same for all groups .*got \[0.1, 1.0\]"),
        (lambda: Optimizer(module.parameters(), Adam(), lr=-1.0), "`lr` must be > 0, got -1.0"),
        (
            lambda: Optimizer(groups(module, weight_decay=0.1), Adam()),
            "a group of parameters may have lr, lower, upper, name, got 'weight_decay'; .* to the loss",
        ),
        (lambda: Optimizer(groups(module, uper=1.0), Adam()), r"got 'uper' \(did you mean upper\?\)"),
        (lambda: optimizer.add_param_group({"params": [nn.Parameter(inputs)], "momentum": 1}), "got 'momentum'"),
        (lambda: Optimizer(mixed, Adam()), "one dtype and on one device"),
        (lambda: Optimizer([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], Adam()), "real floating point"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt()


# ------------------------------------------------------------------------------------------------ Lightning


@pytest.mark.parametrize("solver", [LBFGS(), Adam(0.05), lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2)])
def test_a_lightning_loop(solver, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.losses = []

        def training_step(self, batch, number):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, outputs, batch, number):
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self):
            return Optimizer(groups(self.net), solver)

    def trainer(epochs):
        options = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar")}
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **options
        )

    module = Regression()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(module.net)), batch_size=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        first = trainer(6)
        first.fit(module, loader)
        first.save_checkpoint(tmp_path / "half.ckpt")
        plain = network()
        train(plain, Optimizer(groups(plain), solver), 6)
        torch.testing.assert_close(flat(module.net), flat(plain), rtol=0, atol=1e-12)
        resumed = Regression()
        trainer(9).fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt")
    train(plain_again := network(), Optimizer(groups(plain_again), solver), 9)
    torch.testing.assert_close(flat(resumed.net), flat(plain_again), rtol=0, atol=1e-12)
    assert resumed.trainer.optimizers[0].solver_state.step == 9
    assert module.losses[-1] < module.losses[0]


# ------------------------------------------------------------------------------------------------ rates and schedules


def test_lr_of_the_constructor_is_the_rate_of_the_solver():
    module, other = network(), network()
    optimizer = Optimizer(module.parameters(), Adam(), lr=0.05)
    losses = train(module, optimizer, 5)
    assert losses == train(other, torch.optim.Adam(other.parameters(), lr=0.05), 5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]
    optimizer = Optimizer(groups(network()), AdaGrad(rate=0.3))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_a_schedule_of_a_solver_without_rate():
    module = network()
    optimizer = Optimizer(module.parameters(), LBFGS())
    constant = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    train(module, optimizer, 1)
    constant.step()
    train(module, optimizer, 1)  # nothing has changed yet
    constant.step()
    before = flat(module)
    with pytest.raises(ValueError, match=r"`lr` must stay as it was for LBFGS, .* got \[0.1\] after \[1.0\]; leave"):
        train(module, optimizer, 1)
    assert torch.equal(flat(module), before)
    with pytest.warns(UserWarning, match="LBFGS has no rate: `lr` 0.01 is shown, and not used"):
        optimizer = Optimizer(module.parameters(), LBFGS(), lr=0.01)
    assert optimizer.param_groups[0]["lr"] == 0.01
    train(module, optimizer, 1)


# ------------------------------------------------------------------------------------------------ without a closure


@pytest.mark.parametrize("clears", [True, False])
def test_steps_without_a_closure_are_those_of_torch(clears):
    """In the second case gradients of two batches add up before every step."""
    module, other = network(), network()
    inputs, targets = data(module)
    for m, o in (
        (module, Optimizer(module.parameters(), Adam(0.01))),
        (other, torch.optim.Adam(other.parameters(), lr=0.01)),
    ):
        for _ in range(6):
            o.zero_grad()
            for rows in (slice(0, 20),) if clears else (slice(0, 8), slice(8, 20)):
                nn.functional.mse_loss(m(inputs[rows]), targets[rows]).backward()
            assert o.step() is None
    assert torch.equal(flat(module), flat(other))


def test_gradients_scaled_for_half_precision():
    module, other = network(torch.float32), network(torch.float32)
    inputs, targets = data(module)
    for m, o in (
        (module, Optimizer(module.parameters(), Sgd(0.1, 0.9))),
        (other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(6):
            o.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(m(inputs * (math.inf if step == 3 else 1)), targets)
            scaler.scale(loss).backward()
            scaler.step(o)
            scaler.update()
    assert torch.equal(flat(module), flat(other))
    assert not torch.equal(flat(module), flat(network(torch.float32)))


@pytest.mark.parametrize(
    "solver", [LBFGS(), TrustRegion(), NewtonCG(), lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2)]
)
def test_solvers_that_need_a_closure_refuse_to_do_without(solver):
    module = network()
    optimizer = Optimizer(groups(module), solver)
    inputs, targets = data(module)
    closure, before = closure_of(module, optimizer, inputs, targets), flat(module)
    closure()
    with pytest.raises(ValueError, match="needs a closure that computes the loss anew, got none; write"):
        optimizer.step()
    with pytest.raises(ValueError, match="the closure must return the loss, got None; end it with `return loss`"):
        optimizer.step(lambda: closure() and None)
    assert torch.equal(flat(module), before)
    optimizer.step(closure)  # and goes on as if nothing had been
    expected = network()
    train(expected, Optimizer(groups(expected), solver), 1)
    assert torch.equal(flat(module), flat(expected))


# ------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("solver", [Adam(0.01), LBFGS(), partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1))])
def test_a_copy_goes_on_alike_on_its_own(solver, copied):
    module = network()
    options = {"name": "last"} if isinstance(solver, LBFGS) else {"name": "last", "lower": -0.2}
    optimizer = Optimizer(groups(module, **options), solver)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # leaves entries in the groups
    train(module, optimizer, 4)
    twin, other = copied((module, optimizer))
    assert other.param_groups[1]["params"][0] is twin[3].weight
    assert [{**g, "params": 0} for g in other.param_groups] == [{**g, "params": 0} for g in optimizer.param_groups]
    before = flat(module)
    losses = train(twin, other, 5)
    assert torch.equal(flat(module), before)
    assert losses == train(module, optimizer, 5)
    assert torch.equal(flat(twin), flat(module))
    assert other.solver_state.step == 9


def test_a_fresh_optimizer_can_be_copied():
    module, optimizer = copy.deepcopy((module := network(), Optimizer(module.parameters(), LBFGS())))
    plain = network()
    assert train(module, optimizer, 3) == train(plain, Optimizer(plain.parameters(), LBFGS()), 3)


# ------------------------------------------------------------------------------------------------ gradients, buffers


def test_gradients_of_any_strides_and_parameters_of_any_shape():
    def convolution():
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 2).double(), nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def losses(net, scale, make):
        net.to(memory_format=torch.channels_last)
        optimizer = make([*net.parameters(), scale])
        images = torch.linspace(-1, 1, 2 * 3 * 5 * 5, dtype=torch.float64).view(2, 3, 5, 5)

        def closure():
            optimizer.zero_grad()
            loss = (scale * net(images.to(memory_format=torch.channels_last)) - 1).square().mean()
            loss.backward()
            # as they may come from hooks or kernels
            net.weight.grad = net.weight.grad.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
            return loss

        return [float(optimizer.step(closure).detach()) for _ in range(10)]

    ours = losses(*convolution(), lambda params: Optimizer(params, Sgd(0.1)))
    theirs = losses(*convolution(), lambda params: torch.optim.SGD(params, lr=0.1))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    fitted = losses(*convolution(), lambda params: Optimizer(params, LBFGS()))
    assert fitted[-1] < theirs[-1]


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True).double()
    optimizer = Optimizer(table.parameters(), Adam())
    before = flat(table)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense, got torch.sparse_coo; use sparse=False"):
        optimizer.step()
    assert torch.equal(flat(table), before)


def test_strides_that_change_are_noticed():
    module = nn.Linear(3, 3, bias=False).double()
    optimizer = Optimizer(module.parameters(), Sgd(0.1))
    inputs = torch.eye(3, dtype=torch.float64)
    closure = closure_of(module, optimizer, inputs, torch.zeros(3, 3, dtype=torch.float64))
    optimizer.step(closure)
    module.weight.data = module.weight.data.t()
    expected = module.weight.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(module.weight.detach(), expected * (1 - 0.1 * 2 / 9))


def test_two_optimizers_of_one_module_take_turns():
    module, other = network(), network()
    pairs = [
        (Optimizer(m.parameters(), Sgd(0.1)), torch.optim.SGD(n.parameters(), lr=0.1)) for m, n in [(module, other)] * 2
    ]
    for ours, theirs in [*pairs, *pairs]:
        assert train(module, ours, 2) == train(other, theirs, 2)
    assert torch.equal(flat(module), flat(other))


@pytest.mark.parametrize("solver", [LBFGS(), TrustRegion()])
def test_batch_norm_keeps_the_statistics_of_the_first_evaluation(solver):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = Optimizer(module.parameters(), solver)
    inputs, targets = data(module)
    closure, calls = closure_of(module, optimizer, inputs, targets), []

    def counted():
        calls.append(1)
        return closure()

    twin = copy.deepcopy(module[:2])
    with pytest.warns(
        UserWarning, match="evaluates the loss several times a step, and 3 buffers of the module"
    ) as told:
        for _ in range(4):
            twin.load_state_dict(
                {k: v for k, v in module.state_dict().items() if k in dict(twin.named_parameters())}, strict=False
            )
            twin(inputs)
            optimizer.step(counted)
            for buffer, expected in zip(module.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)
    assert len(calls) > 5
    assert sum("buffers" in str(w.message) for w in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(module, Optimizer(module.parameters(), Adam()), 2)  # one evaluation: as in torch
        module.eval()
        train(module, Optimizer(module.parameters(), solver), 2)


class OwnNorm(nn.Module):
    """Statistics in buffers of its own: no version and no counter tells that they are written to."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("var", torch.ones(width, dtype=torch.float64))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.var, training=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, affine=False).double(), OwnNorm(3)])
def test_statistics_of_a_module_beside_the_trained_one(norm):
    head = nn.Linear(3, 1).double()
    unused = nn.BatchNorm1d(2)
    unused.running_mean.fill_(math.nan)
    optimizer = Optimizer(head.parameters(), LBFGS())
    inputs, targets = data(head)
    twin = copy.deepcopy(norm)
    closure = closure_of(lambda x: head(norm(x)), optimizer, inputs, targets)
    with pytest.warns(UserWarning, match=f" {len(list(norm.buffers()))} buffers of the module"):
        for _ in range(4):
            twin(inputs)
            optimizer.step(closure)
            for buffer, expected in zip(norm.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)
    assert float(optimizer.step(closure)) < 0.99 * float(targets.square().mean())


def test_an_optimizer_for_each_group_gives_each_its_rate():
    """The way out that the refusal of several rates names, with one gradient for both."""
    module, other = network(), network()
    closure = closure_of(module, module, *data(module))
    ours = [Optimizer(module[0].parameters(), Adam(0.01)), Optimizer(module[3].parameters(), Adam(0.001))]
    theirs = torch.optim.Adam(groups(other, lr=0.001), lr=0.01)
    for _ in range(5):
        closure()
        for optimizer in ours:
            optimizer.step()
        theirs.step(closure_of(other, theirs, *data(other)))
    assert torch.equal(flat(module), flat(other))


def test_lightning_accumulates_for_one_gradient_a_step_only(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Regression(lightning.LightningModule):
        def __init__(self, make):
            super().__init__()
            self.net, self.make = network(), make

        def training_step(self, batch, number):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = self.make(groups(self.net, name="last"))
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 1.0 if "LBFGS" in str(self.make) else 0.5)
            return [optimizer], [schedule]

    def fitted(make):
        module = Regression(make)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(module.net)), batch_size=10)
        trainer = lightning.Trainer(
            max_epochs=3,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=lightning.loggers.CSVLogger(tmp_path),
            callbacks=[lightning.callbacks.LearningRateMonitor()],
            log_every_n_steps=1,
            **{name: False for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")},
        )
        trainer.fit(module, loader)
        return flat(module.net), {k: float(v) for k, v in trainer.callback_metrics.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, rates = fitted(partial(Optimizer, solver=Adam(), lr=0.01))
        y, expected = fitted(partial(torch.optim.Adam, lr=0.01))
        assert torch.equal(x, y)
        assert rates == {key.replace("Adam", "Optimizer"): rate for key, rate in expected.items()} != {}
        with pytest.raises(ValueError, match="the closure must clear all gradients .*accumulate_grad_batches=1"):
            fitted(partial(Optimizer, solver=LBFGS()))


def test_a_compiled_module_is_compiled_once():
    torch._dynamo.reset()
    graphs = []

    def train_norms(compiled):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
        called = (
            torch.compile(module, fullgraph=True, backend=lambda g, _: graphs.append(g) or g) if compiled else module
        )
        optimizer = Optimizer(module.parameters(), LBFGS())
        closure = closure_of(called, optimizer, *data(module))
        return [float(optimizer.step(closure)) for _ in range(4)], list(module.buffers())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (losses, buffers), (expected, kept) = train_norms(True), train_norms(False)
    assert len(graphs) == 1
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(buffers, kept)
    assert int(buffers[2]) == 4  # once a step
