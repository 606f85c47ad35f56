"""First-order solvers in plain training loops, beside their namesakes of torch.optim: the same iterates."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

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

INITIAL = 0.01  # of the weights of AdaGrad
PAIRS = {
    "adam": (Adam(0.01), partial(torch.optim.Adam, lr=0.01)),
    "sgd": (Sgd(0.1), partial(torch.optim.SGD, lr=0.1)),
    "nesterov": (Sgd(0.1, 0.9, True), partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)),
    "torch-adagrad": (TorchAdaGrad(0.1), partial(torch.optim.Adagrad, lr=0.1)),
    "adagrad": (
        AdaGrad(rate=0.1, varsigma=INITIAL),
        partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=INITIAL**2, eps=0),
    ),
}
SCHEDULES = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, 1.0),
    "warm-up from zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 3)),
    "through zero": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def data(dtype):
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return inputs, inputs.prod(1, keepdim=True)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def groups(module, **options):
    """Two groups, the options for the second one."""
    return [{"params": module[0].parameters()}, {"params": module[2].parameters(), **options}]


def loop(module, optimizer, steps=10, schedule=lambda o: None):
    """The parameters after each step of a plain loop."""
    inputs, targets = data(next(module.parameters()).dtype)
    schedule, points = schedule(optimizer), []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(inputs), targets).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        points.append(flat(module))
    return torch.stack(points)


def same(make, theirs, of=network, parameters=lambda m: m.parameters(), **options):
    """Whether two optimizers do the same."""
    ours, other = of(), of()
    points = loop(ours, make(parameters(ours)), **options)
    assert bool((points[-1] != points[0]).any())
    return torch.equal(points, loop(other, theirs(parameters(other)), **options))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_schedules_in_a_plain_loop(name, schedule, dtype):
    solver, theirs = PAIRS[name]
    assert same(partial(Optimizer, solver=solver), theirs, partial(network, dtype), schedule=SCHEDULES[schedule])


def test_a_schedule_by_the_loss():
    solver, theirs = PAIRS["adam"]
    ends = []
    for make in (partial(Optimizer, solver=solver), theirs):
        module = network()
        optimizer = make(module.parameters())
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2)
        for _ in range(10):
            loop(module, optimizer, 1)
            inputs, targets = data(torch.float32)
            schedule.step(float(nn.functional.mse_loss(module(inputs), targets).detach()))
        ends.append((flat(module), optimizer.param_groups[0]["lr"]))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] < 0.005


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_scaled_for_half_precision(name, schedule):
    """Two batches are infinite: the scaler leaves their steps out and halves its scale."""
    found = []
    inputs, targets = data(torch.float32)
    solver, theirs = PAIRS[name]
    for make in (partial(Optimizer, solver=solver), theirs):
        module = network()
        optimizer = make(module.parameters())
        rates, points, scales = SCHEDULES[schedule](optimizer), [], []
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        for step in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(module(inputs * (math.inf if step in (0, 5) else 1)), targets)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch: a schedule that goes on where the scaler left out a step
                rates.step()
            points.append(flat(module))
            scales.append(scaler.get_scale())
        found.append((points, scales))
    (points, scales), (expected, other_scales) = found
    assert torch.equal(torch.stack(points), torch.stack(expected))
    assert scales == other_scales and scales[0] == 2.0**19
    assert torch.equal(points[0], flat(network())) and torch.equal(points[5], points[4])
    assert not torch.equal(points[9], points[5])


@pytest.mark.filterwarnings("ignore:LBFGS")
def test_half_precision_without_a_scale_for_solvers_that_compare_values():
    """The way out that the refusal of a step by GradScaler names."""
    module, (inputs, targets) = network(), data(torch.float32)
    optimizer, scaler = Optimizer(module.parameters(), LBFGS()), torch.amp.GradScaler("cpu")

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        return loss

    scaler.scale(closure())
    with pytest.raises(
        ValueError, match="LBFGS needs a closure .*GradScaler allows none: leave it out, autocast to bf"
    ):
        scaler.step(optimizer)
    assert torch.equal(flat(module), flat(network()))
    losses = [float(optimizer.step(closure)) for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------------------------ rates by group


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PAIRS)
def test_groups_of_their_own_rates(name, schedule):
    solver, theirs = PAIRS[name]
    rates = partial(groups, lr=0.003)
    assert same(partial(Optimizer, solver=solver), theirs, parameters=rates, schedule=SCHEDULES[schedule])


def test_rates_that_part_and_meet_again_on_the_way():
    """The memory of the solver is one of all unknowns all the time."""

    def factors(optimizer):
        return lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: [1.0, 0.5, 0.0, 1.0][step // 2 % 4]])

    for solver, theirs in PAIRS.values():
        assert same(partial(Optimizer, solver=solver), theirs, parameters=groups, schedule=factors)


def test_rates_and_bounds_by_group():
    module, rate = network(torch.float64), 0.05
    optimizer = Optimizer(groups(module, lr=rate, lower=-0.2, upper=0.2), Sgd(0.2))
    other, (inputs, targets) = network(torch.float64), data(torch.float64)
    for _ in range(10):
        loop(module, optimizer, 1)
        g = torch.autograd.grad(nn.functional.mse_loss(other(inputs), targets), list(other.parameters()))
        with torch.no_grad():
            for k, (p, d) in enumerate(zip(other.parameters(), g, strict=True)):
                p.copy_(p - 0.2 * d if k < 2 else (p.clamp(-0.2, 0.2) - rate * d).clamp(-0.2, 0.2))
        torch.testing.assert_close(flat(module), flat(other), rtol=1e-12, atol=1e-14)
    assert bool((flat(module)[24:].abs() == 0.2).any())


def test_rates_by_group_are_saved_and_go_on():
    for solver, _ in PAIRS.values():
        module, again = network(), network()
        optimizer = Optimizer(groups(module, lr=0.003), solver)
        loop(module, optimizer, 4)
        resumed = Optimizer(groups(again), solver)
        resumed.load_state_dict(optimizer.state_dict())
        again.load_state_dict(module.state_dict())
        assert torch.equal(loop(again, resumed), loop(module, optimizer))


@pytest.mark.filterwarnings("ignore:LBFGS has no rate")
@pytest.mark.parametrize(
    "solver",
    [
        LBFGS(),
        AdaGrad(curvature="lbfgs"),
        partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1)),
        partial(NonlinearSchwarz, local=Sgd(0.1)),
    ],
)
def test_solvers_that_move_all_unknowns_together_refuse_rates_by_group(solver):
    words = r"`lr` must be the same for all groups of parameters with \w+, got \[.*, 0.003\]; take a solver that moves"
    with pytest.raises(ValueError, match=words):
        Optimizer(groups(network(), lr=0.003), solver)


def test_the_ways_out_that_the_refusal_names_work():
    module = network(torch.float64)
    loop(module, Optimizer(groups(module, lr=0.003), AdaGrad(rate=0.1, curvature="none")))
    module = network(torch.float64)
    pair = [
        Optimizer(module[k].parameters(), AdaGrad(rate=rate, curvature="lbfgs")) for k, rate in ((0, 0.1), (2, 0.01))
    ]
    start = flat(module)
    for optimizer in pair:
        optimizer.zero_grad()
        loop(module, optimizer, 1)
    assert bool((flat(module) != start).all())


# ------------------------------------------------------------------------------------------------ weight decay


@pytest.mark.parametrize("decays", [{}, {"weight_decay": 0.0}, {"weight_decay": 0.3}])
@pytest.mark.parametrize("name", PAIRS)
def test_weight_decay_is_that_of_torch(name, decays):
    solver, theirs = PAIRS[name]
    ours = partial(Optimizer, solver=solver, weight_decay=0.1)
    assert same(ours, partial(theirs, weight_decay=0.1), parameters=partial(groups, **decays))
    assert not same(ours, theirs, parameters=partial(groups, **decays))
    rates = partial(groups, lr=0.003, **decays)
    assert same(ours, partial(theirs, weight_decay=0.1), parameters=rates)


@pytest.mark.parametrize("case", ["frozen", "unused"])
def test_parameters_without_a_gradient_do_not_decay(case):
    solver, theirs = PAIRS["nesterov"]
    ends = []
    for make in (partial(Optimizer, solver=solver), theirs):
        module = nn.ModuleList([network(), nn.Linear(2, 2)])
        frozen = module[0][0].bias.requires_grad_(case == "unused")
        start, unused = frozen.detach().clone(), module[1].weight.detach().clone()
        loop(module[0], make(module.parameters(), weight_decay=0.1))
        assert torch.equal(module[1].weight.detach(), unused)
        assert (case == "unused") != torch.equal(frozen.detach(), start)
        ends.append(flat(module))
    assert torch.equal(*ends)


def closure_of(module, optimizer, term=lambda: 0.0):
    inputs, targets = data(torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(inputs), targets) + term()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize(
    ("solver", "slack"),
    [
        (LBFGS(), 1e-8),
        (TrustRegion(), 1e-8),
        (NewtonCG(), 1e-3),  # its Hessian is one of differences
        (lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2), 1e-8),
    ],
)
def test_solvers_that_compare_values_see_the_loss_with_decay(solver, slack):
    """As where the closure adds the term itself; the loss that comes back is the closure's own."""
    module, other = network(torch.float64), network(torch.float64)
    ours = Optimizer(groups(module, weight_decay=0.2), solver, weight_decay=0.05)
    theirs = Optimizer(groups(other), solver)

    def term():
        return sum(w / 2 * p.square().sum() for k, w in ((0, 0.05), (2, 0.2)) for p in other[k].parameters())

    closure, other_closure = closure_of(module, ours), closure_of(other, theirs, term)
    for _ in range(3):
        with torch.no_grad():
            added = float(term())
        assert float(ours.step(closure)) == pytest.approx(float(theirs.step(other_closure)) - added, rel=slack)
        torch.testing.assert_close(flat(module), flat(other), rtol=slack, atol=0.1 * slack)


def test_decay_apart_from_the_gradient_by_hand():
    """The way out that the refusal names."""
    module, other, (inputs, targets) = network(), network(), data(torch.float32)
    ours = Optimizer(module.parameters(), Adam(0.01))
    loop(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1))
    for _ in range(10):
        ours.zero_grad()
        nn.functional.mse_loss(module(inputs), targets).backward()
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(1 - 0.01 * 0.1)
        ours.step()
    assert torch.equal(flat(module), flat(other))
