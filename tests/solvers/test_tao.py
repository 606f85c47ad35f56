"""TAO, one iteration per step: the same iterates and counts as one call of TAO, and runs that end in every way."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch

pytest.importorskip("petsc4py", reason="petsc4py is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")

from mldd.algebra import DIFFERENCES, counting, on_this_rank  # noqa: E402
from mldd.loop import Status, Stop, minimise  # noqa: E402
from mldd.ranks import insert_options, load_petsc, read  # noqa: E402
from mldd.solvers.petsc import Tao  # noqa: E402
from mldd.solvers.petsc.tao_problem import TaoProblem  # noqa: E402
from tests.helpers import Failing, Rosenbrock, WithoutProducts, quadratic  # noqa: E402
from tests.ranks.test_petsc import _bounded_solution  # noqa: E402

WITH_BOUNDS = ["blmvm", "bqnls", "bqnkls", "bqnktr", "bqnktl", "bncg", "bnls", "bntr", "bntl", "tron"]
WITHOUT = ["lmvm", "cg", "nls", "ntr", "ntl"]
# They may evaluate the last trial point of a failed attempt again.
WITH_RETRIES = ["nls", "ntr", "ntl", "bnls", "bntr", "bntl", "bqnkls", "bqnktl"]


def _case(type):
    f = Rosenbrock(6) if type in WITHOUT else quadratic(15, condition=20.0, bounded=True)
    return f, f.start() if type in WITHOUT else f.bounds.project(torch.zeros(15, dtype=torch.float64))


def assert_same(a, b):
    """Not to the last digit: BLAS rounds by where in memory a vector begins."""
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("type", ["blmvm", "bqnktr", "bqnls", "bnls"])
def test_bounds_against_scipy(type):
    f, x = _case(type)
    result = minimise(f, x, Tao(type), stop=Stop(600, atol=1e-7))
    assert result.status is Status.converged_atol
    assert f.bounds.violation(result.x) == 0.0
    torch.testing.assert_close(result.x, _bounded_solution(f), rtol=0, atol=1e-6)


def test_without_bounds_against_the_closed_form():
    f = quadratic(15, condition=20.0)
    # Where the gradient is 1e-8 a step lowers the value by less than its rounding error, and line searches fail.
    result = minimise(f, torch.zeros(15, dtype=torch.float64), Tao("lmvm"), stop=Stop(200, atol=1e-6))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=4e-6)  # sqrt(15) 1e-6 over the least eigenvalue, 1


@pytest.mark.parametrize("type", WITH_BOUNDS + WITHOUT)
def test_stepwise_equals_one_call_of_tao(type):
    f, x = _case(type)
    problem = TaoProblem(f, x, type)
    iterates, evaluations = {}, {}

    def note(tao):
        k = tao.getIterationNumber()
        if k not in iterates:
            iterates[k] = read(problem.solution, torch.empty_like(x))
            evaluations[k] = cost.gradients
        if k == 12:
            tao.setConvergedReason(load_petsc().TAO.ConvergedReason.CONVERGED_USER)

    problem.solver.setTolerances(0.0, 0.0, 0.0)
    problem.solver.setConvergenceTest(note)
    with counting() as cost:
        problem.run()
    problem.destroy()

    steps = []
    result = minimise(f, x, Tao(type), stop=Stop(12), after_step=lambda x, state, history: steps.append(x.clone()))
    assert len(steps) >= min(len(iterates), 3)
    for k, step in enumerate(steps):
        if k in iterates:
            assert_same(step, iterates[k])
    # The gradients at the iterates are TAO's own: the loop's tests cost none.
    counts = result.history.column("gradient_evaluations")
    for k in range(1, len(counts)):
        if k in evaluations and counts[k] != evaluations[k]:
            assert type in WITH_RETRIES and counts[k] <= evaluations[k] + 1


@pytest.mark.parametrize("type", ["blmvm", "lmvm", "bncg"])
def test_gradients_are_as_many_as_tao_says(type):
    f, x = (Rosenbrock(6), Rosenbrock(6).start()) if type in WITHOUT else _case(type)
    iterations, calls = [], 0

    def ask(x, state, history):
        if state.run is not None:
            iterations.append(state.run.session.problem.solver.getIterationNumber())

    class Counting(f.__class__):
        def value_and_gradient(self, x):
            nonlocal calls
            calls += 1
            return super().value_and_gradient(x)

    fields = [f.size] if isinstance(f, Rosenbrock) else [f.A, f.b, f.bounds]
    result = minimise(Counting(*fields), x, Tao(type), stop=Stop(25, atol=1e-9), after_step=ask)
    # One gradient was evaluated by the loop at the start; all others are TAO's calls.
    assert result.record.cost.gradient_evaluations == calls + 1
    assert iterations == list(range(len(iterations)))
    assert result.record.cost.work_units == pytest.approx(calls + 1 + 1 / 3)


@pytest.mark.parametrize("type", ["nls", "bntr", "tron"])
def test_newton_types_take_differences_of_gradients_where_there_are_no_products(type):
    f, x = _case(type)
    result = minimise(WithoutProducts(f), x, Tao(type), stop=Stop(100, atol=1e-5))
    exact = minimise(f, x, Tao(type), stop=Stop(100, atol=1e-5))
    assert result.status is exact.status is Status.converged_atol
    torch.testing.assert_close(result.x, exact.x, rtol=0, atol=1e-4)
    assert DIFFERENCES in result.state.notes and DIFFERENCES not in exact.state.notes


def test_line_search_failure_is_a_stall():
    f, x = Rosenbrock(4), Rosenbrock(4).start()
    result = minimise(f, x, Tao("blmvm"), stop=Stop(10**4))  # beyond rounding
    assert result.status in (Status.stalled, Status.converged_atol)
    assert result.record.measure < 1e-6
    if result.status is Status.stalled:
        assert result.state.reason != 0 and result.state.run is None


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_the_exception_of_a_callback_comes_out_as_it_was(kind, at, capfd):
    def fail():
        raise kind("mine")

    f = Failing(quadratic(6), at, fail)
    with pytest.raises(kind, match="mine"):
        minimise(f, torch.zeros(6, dtype=torch.float64), Tao(), stop=Stop(50))
    assert capfd.readouterr().err == ""


def test_a_value_that_is_not_finite_is_divergence():
    f = Failing(quadratic(6), 0, lambda: torch.tensor(math.nan, dtype=torch.float64))
    x = torch.ones(6, dtype=torch.float64)
    result = minimise(f, x, Tao(), stop=Stop(5))
    assert result.status is Status.diverged
    assert torch.equal(result.x, x)

    class NoFiniteValue(Rosenbrock):
        def value(self, x):
            return torch.tensor(math.inf, dtype=torch.float64)

    result = minimise(NoFiniteValue(4), Rosenbrock(4).start(), Tao(), stop=Stop(5))
    assert result.status is Status.diverged


def test_unfinished_runs_end_with_their_state(capfd):
    f, x = _case("blmvm")
    watched = []
    for _ in range(5):
        g = Failing(f, 10**9, lambda: torch.zeros(()))
        watched.append(weakref.ref(g))
        result = minimise(g, x, Tao(), stop=Stop(3))
        assert result.status is Status.max_steps and result.state.run is not None
    del g, result
    gc.collect()
    assert [w() for w in watched] == [None] * 5
    assert "".join(capfd.readouterr()) == ""


def test_unfinished_runs_at_the_end_of_python(tmp_path):
    code = """
        import torch
        from tests.helpers import quadratic, Failing
        from mldd.loop import minimise, Stop
        from mldd.solvers.petsc import Tao
        f, x = quadratic(10, bounded=True), torch.zeros(10, dtype=torch.float64)
        runs = [minimise(f, x, Tao(t), stop=Stop(2)) for t in ("blmvm", "bqnktr", "bntr")]
        print([r.state.run is not None for r in runs])
    """
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[True, True, True]\n"


def test_two_runs_at_once_and_one_inside_the_other():
    f, x = _case("blmvm")
    alone = minimise(f, x, Tao(), stop=Stop(6)).x

    class Nested(Failing):  # every evaluation runs a TAO solver of its own
        def value_and_gradient(self, x):
            assert_same(minimise(f, start, Tao(), stop=Stop(6)).x, alone)
            return super().value_and_gradient(x)

    start = x
    outer = minimise(Nested(f, 10**9, lambda: torch.zeros(())), x, Tao(), stop=Stop(6))
    assert_same(outer.x, alone)
    solver, a, b = Tao(), x.clone(), x.clone()
    sa, sb = solver.init(f, a), solver.init(f, b)
    for _ in range(6):
        a, sa = solver.step(f, a, sa)
        b, sb = solver.step(f, b, sb)
    assert_same(a, alone)
    assert_same(b, alone)


def test_a_moved_iterate_starts_tao_anew():
    f, x = _case("blmvm")
    solver, moved = Tao(), x.clone()
    state = solver.init(f, moved)
    for _ in range(3):
        moved, state = solver.step(f, moved, state)
    moved.copy_(x)
    fresh = x.clone()
    moved, state = solver.step(f, moved, state)
    fresh, _ = solver.step(f, fresh, solver.init(f, fresh))
    assert_same(moved, fresh)


def test_costs_go_to_the_ledger_of_the_step():
    f, x = _case("blmvm")
    solver = Tao()
    state = solver.init(f, x)
    with counting() as first:
        x, state = solver.step(f, x, state)
    with counting() as second, on_this_rank():
        x, state = solver.step(f, x, state)
    assert first.gradients >= 1 and first.work >= first.gradients
    assert second.gradients == 0 and second.work >= 1


def test_float32():
    f = quadratic(15, condition=20.0, bounded=True, dtype=torch.float32)
    result = minimise(f, torch.zeros(15), Tao(), stop=Stop(100, atol=1e-2))
    assert result.status is Status.converged_atol and result.x.dtype == torch.float32
    assert f.bounds.violation(result.x) == 0.0


def test_options_and_prefix():
    f, x = _case("blmvm")
    insert_options(["-probe_tao_type", "bncg", "-probe_tao_max_it", "2"])
    try:
        result = minimise(f, x, Tao(prefix="probe_"), stop=Stop(5))
        assert result.state.run.session.problem.solver.getType() == "bncg"
        assert result.record.step == 5  # the loop's limit holds, not TAO's
    finally:
        for name in ("probe_tao_type", "probe_tao_max_it"):
            load_petsc().Options().delValue(name)


def test_the_state_refuses_to_be_saved():
    f, x = _case("blmvm")
    result = minimise(f, x, Tao(), stop=Stop(2))
    assert result.state.resumable is False
    for save in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or saved.*use a solver"):
            save(result.state)


def test_a_type_that_does_not_fit_is_refused():
    f, x = _case("blmvm")
    with pytest.raises(ValueError, match="ignores bounds, got .*use blmvm"):
        minimise(f, x, Tao("lmvm"), stop=Stop(2))
    with pytest.raises(ValueError, match="got 'nonsense'"):
        minimise(f, x, Tao("nonsense"), stop=Stop(2))
    insert_options(["-probe_tao_type", "nonsense"])
    try:
        with pytest.raises(ValueError, match="`type` must be a TAO type of this PETSc, one of .*got 'nonsense'"):
            minimise(f, x, Tao(prefix="probe_"), stop=Stop(2))
    finally:
        load_petsc().Options().delValue("probe_tao_type")


@pytest.mark.parametrize("type", ["pounders", "brgn", "asils", "almm", "bqpip", "owlqn", "bmrm"])
def test_types_that_want_more_than_an_objective_are_refused(type):
    f = quadratic(4)
    with pytest.raises(ValueError, match=f"TAO type '{type}' wants .*use one of .*blmvm"):
        Tao(type).init(f, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="ignores bounds"):
        bounded = quadratic(4, bounded=True)
        Tao("snes").init(bounded, torch.zeros(4, dtype=torch.float64))
