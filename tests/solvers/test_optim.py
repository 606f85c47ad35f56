"""Solvers of mldd as torch optimizers: plain loops, groups, bounds, schedulers, saving and copies."""

import copy
import io
import pickle
from functools import partial
from operator import attrgetter

import pytest
import torch
from torch import nn

from mldd.algebra import ModuleObjective, counting
from mldd.loop import Stop, minimise
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
    assert resumed.state_dict() == saved["optimizer"]  # not yet at work
    assert train(again, resumed, 5) == expected
    assert torch.equal(flat(again), flat(module))
    assert resumed.solver_state.step == 10
    with pytest.raises(ValueError, match="`state_dict` must be that of TorchAdaGrad, got "):
        Optimizer(groups(network()), TorchAdaGrad()).load_state_dict(saved["optimizer"])
    with pytest.raises(ValueError, match="got that of another optimizer"):
        resumed.load_state_dict(torch.optim.Adam(groups(network())).state_dict())


@pytest.mark.parametrize("solver", [Adam(0.01), LBFGS()])
def test_states_of_distributed_checkpoints_are_whole(solver):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    module, again = network(), network()
    optimizer = Optimizer(groups(module), solver)
    train(module, optimizer, 5)
    optimizer.zero_grad()  # torch then does a step of an optimizer without a state
    before = flat(module)
    saved = get_optimizer_state_dict(module, optimizer)
    assert optimizer.solver_state.step == 5 and torch.equal(flat(module), before)
    resumed = Optimizer(groups(again), solver)
    again.load_state_dict(module.state_dict())
    set_optimizer_state_dict(again, resumed, saved)
    assert train(again, resumed, 5) == train(module, optimizer, 5)
    assert resumed.solver_state.step == 10


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
