"""Optimizers whose closure, gradients or options are wrong: what is refused, and what is told once."""

import math
import re
import warnings

import pytest
import torch
from torch import nn

from mldd.loop import Status
from mldd.solvers import (
    LBFGS,
    Adam,
    NewtonCG,
    Optimizer,
    Sgd,
    TrustRegion,
)
from tests.solvers.test_optim import closure_of, data, flat, groups, network, train


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


@pytest.mark.parametrize("solver", [LBFGS(), TrustRegion()])
def test_gradients_that_begin_to_pile_up_on_the_way_are_refused(solver):
    """As a schedule of accumulation does: some steps with zero_grad in the closure, then some without."""
    module = network()
    optimizer = Optimizer(module.parameters(), solver)
    train(module, optimizer, 3)
    before = flat(module)
    inputs, targets = data(module)

    def closure():
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"the closure must clear all gradients .*zero_grad\(\) .*batches"):
        optimizer.step(closure)
    assert torch.equal(flat(module), before)
    assert train(module, optimizer, 2)[-1] > 0  # and goes on with the closure that clears them


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", [LBFGS(), TrustRegion(), NewtonCG()])
def test_gradients_that_are_not_those_of_the_loss_are_told_once(solver, dtype):
    """Scaled as GradScaler does inside of a closure, or clipped to a small norm."""
    module = network(dtype)
    inputs, targets = data(module)

    def clip():
        nn.utils.clip_grad_norm_(module.parameters(), 1e-2)

    for scale, after, factor in ((1024.0, lambda: None, "9.8e-04"), (1.0, clip, r"\d.*e\+0[12]")):
        optimizer = Optimizer(module.parameters(), solver)

        def closure(optimizer=optimizer, scale=scale, after=after):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(inputs), targets)
            (scale * loss).backward()
            after()
            return loss

        words = rf"the gradient must be that of the loss .*, got slopes that differ by the factor {factor} \(a scaled"
        with pytest.warns(UserWarning) as told:
            for _ in range(3):
                optimizer.step(closure)
        assert [bool(re.search(words, str(w.message))) for w in told].count(True) == 1


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
    with pytest.warns(UserWarning) as told:
        optimizer.step(lying)
    words = [str(w.message) for w in told]
    assert len(words) == 2 and "LBFGS: the solver cannot improve the point" in words[0]
    assert "slopes that differ by the factor -1.0e+00" in words[1]
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
        (lambda: Optimizer(module.parameters(), Adam(), lr=-1.0), "`lr` must be > 0, got -1.0"),
        (
            lambda: Optimizer(groups(module, betas=0.1), Adam()),
            "a group of parameters may have lr, weight_decay, lower, upper, name, got 'betas'; .* to the solver",
        ),
        (lambda: Optimizer(groups(module, weight_decay=-0.1), Adam()), r"`weight_decay` must be >= 0 .*\[0.0, -0.1\]"),
        (lambda: Optimizer(module.parameters(), Adam(), weight_decay=math.inf), r"`weight_decay` must be .*\[inf\]"),
        (
            lambda: Optimizer(groups(module, decoupled_weight_decay=True), Adam()),
            "got decoupled_weight_decay; multiply",
        ),
        (lambda: Optimizer(groups(module, uper=1.0), Adam()), r"got 'uper' \(did you mean upper\?\)"),
        (lambda: optimizer.add_param_group({"params": [nn.Parameter(inputs)], "momentum": 1}), "got 'momentum'"),
        (lambda: Optimizer(mixed, Adam()), "one dtype and on one device"),
        (lambda: Optimizer([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], Adam()), "real floating point"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt()
