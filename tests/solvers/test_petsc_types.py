"""Solvers of mldd inside PETSc's loops: the same steps as `minimise`, PETSc's monitors, reasons, views and stages."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

pytest.importorskip("petsc4py", reason="petsc4py is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")

from mldd.algebra import counting  # noqa: E402
from mldd.command.builder import Builder  # noqa: E402
from mldd.command.preparation import Preparation
from mldd.loop import State, Status, Stop, minimise  # noqa: E402
from mldd.problems.grids import Obstacle  # noqa: E402
from mldd.ranks import (
    as_tensor,
    as_vec,
    load_petsc,
    read,
    write,
)
from mldd.ranks.petsc import copies  # noqa: E402
from mldd.solvers import (  # noqa: E402
    LBFGS,  # noqa: E402
    AdaGrad,  # noqa: E402
    Adam,
    MultilevelAdaGrad,  # noqa: E402
    Recursion,  # noqa: E402
    SchwarzAdaGrad,  # noqa: E402
    Sgd,
)
from mldd.solvers.petsc import Tao  # noqa: E402
from mldd.solvers.petsc import petsc_types as python_types  # noqa: E402
from mldd.solvers.petsc.petsc_types import PetscObjective, SnesSolver, TaoSolver  # noqa: E402
from tests.helpers import Failing, Rosenbrock, WithoutValue, quadratic  # noqa: E402


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def iterates(f, x, solver, steps):
    found = []
    stop = Stop(steps)
    result = minimise(f, x, solver, stop=stop, after_step=lambda x, state, history: found.append(x.clone()))
    return found, result


def tao_of(context, x, **tolerances):
    """Return TAO with an mldd solver in it, and its solution."""
    tao, vec = load_petsc().TAO().createPython(context, comm=load_petsc().COMM_SELF), as_vec(x.clone())
    tao.setTolerances(**{"gatol": 0.0, "grtol": 0.0, "gttol": 0.0} | tolerances)
    tao.setSolution(vec)
    return tao, vec


def callbacks_of(f, tao):
    """Set TAO's callbacks by hand."""
    here = lambda v: torch.from_numpy(v.array_r.copy())  # noqa: E731
    tao.setObjective(lambda tao, v: float(f.value(here(v))))
    tao.setGradient(lambda tao, v, out: write(f.gradient(here(v)), out), tao.getSolution().duplicate())


def multilevel():
    problem = Obstacle(n=15)
    return problem.objective(), problem.initial(), MultilevelAdaGrad(problem.hierarchy(3))


def schwarz():
    problem = Obstacle(n=15)
    return problem.objective(), problem.initial(), SchwarzAdaGrad(problem.decomposition(4, 1))


def single(solver, bounded=False):
    f = quadratic(12, condition=20.0, bounded=bounded)
    return f, f.bounds.project(torch.zeros(12, dtype=torch.float64)), solver


CASES = {
    "adagrad": lambda: single(AdaGrad()),
    "adagrad with bounds": lambda: single(AdaGrad(curvature="lbfgs"), bounded=True),
    "adam": lambda: single(Adam(lr=0.1)),
    "lbfgs": lambda: single(LBFGS()),
    "ml-adagrad": multilevel,
    "dd-adagrad": schwarz,
}


# TAO owns the loop


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tao_does_the_steps_of_minimise(case):
    f, x, solver = case()
    expected, _ = iterates(f, x, solver, 7)
    found = []
    tao, vec = tao_of(TaoSolver(solver, f), x)
    tao.setMonitor(lambda tao: found.append(torch.from_numpy(vec.array_r.copy())))
    tao.setMaximumIterations(7)
    before = copies.vectors
    tao.solve()
    assert copies.vectors == before  # float64 on the CPU: the steps are done in TAO's own vector
    assert len(found) == 8 and tao.getIterationNumber() == 7
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)
    assert tao.getConvergedReason() == load_petsc().TAO.ConvergedReason.DIVERGED_MAXITS
    tao.destroy()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tao_inside_of_minimise_does_the_same_steps_and_costs_the_same(case):
    f, x, solver = case()
    expected, plain = iterates(f, x, solver, 7)
    before = copies.vectors
    found, result = iterates(f, x, Tao("python", solver=solver), 7)
    assert copies.vectors == before
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)
    for name in ("gradient_evaluations", "accepted", "rejected", "level"):
        assert result.history.column(name) == pytest.approx(plain.history.column(name)), name
    # TAO's own first gradient comes without the value that such a solver then asks for
    value = f.price.value if getattr(solver, "needs_value", False) else 0.0
    start, *works = plain.history.column("work_units")
    assert result.history.column("work_units") == pytest.approx([start, *(work + value for work in works)])


def test_float32_is_copied_and_counted():
    f = quadratic(12, condition=20.0, dtype=torch.float32)
    expected, _ = iterates(f, torch.zeros(12), AdaGrad(), 7)
    tao, vec = tao_of(TaoSolver(AdaGrad(), f), torch.zeros(12))
    tao.setMaximumIterations(7)
    before = copies.vectors
    tao.solve()
    assert copies.vectors > before
    torch.testing.assert_close(as_tensor(vec).float(), expected[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bounded", [False, True])
def test_tao_evaluates_its_own_callbacks(bounded):
    f, x, _ = single(AdaGrad(), bounded)
    solver = AdaGrad(curvature="lbfgs")
    expected, _ = iterates(f, x, solver, 5)
    tao, vec = tao_of(TaoSolver(solver), x)
    callbacks_of(f, tao)
    if bounded:
        tao.setVariableBounds((as_vec(f.bounds.lower.clone()), as_vec(f.bounds.upper.clone())))
    tao.setMaximumIterations(5)
    tao.solve()
    assert_same(as_tensor(vec), expected[-1])
    own = PetscObjective(tao)
    assert own.size == 12 and own.bounds.is_free != bounded
    assert float(own.value(x)) == pytest.approx(float(f.value(x)))
    assert_same(own.gradient(x), f.gradient(x))
    tao.destroy()


def test_tao_tests_for_convergence():
    reasons = load_petsc().TAO.ConvergedReason
    f, x, _ = single(LBFGS())
    tao, vec = tao_of(TaoSolver(LBFGS(), f), x, gatol=1e-8)
    tao.solve()
    assert tao.getConvergedReason() == reasons.CONVERGED_GATOL
    assert float(f.gradient(as_tensor(vec)).norm()) <= 1e-8
    assert tao.getSolutionStatus()[1:3] == pytest.approx((float(f.value(f.solution())), 0.0), abs=1e-7)
    assert_same(as_tensor(vec), f.solution())
    assert_same(as_tensor(tao.getGradient()[0]), f.gradient(as_tensor(vec)))


class Ends:
    """A solver that says how it ends."""

    def __init__(self, status):
        self.status = status

    def init(self, objective, x):
        return State()

    def step(self, objective, x, state):
        state.status = self.status
        return x, state


@pytest.mark.parametrize(
    ("status", "tao_reason", "snes_reason"),
    [
        (Status.converged_atol, "CONVERGED_GATOL", "CONVERGED_FNORM_ABS"),
        (Status.converged_rtol, "CONVERGED_GRTOL", "CONVERGED_FNORM_RELATIVE"),
        (Status.stalled, "DIVERGED_LS_FAILURE", "DIVERGED_LINE_SEARCH"),
        (Status.diverged, "DIVERGED_NAN", "DIVERGED_FUNCTION_NANORINF"),
        (Status.max_steps, "DIVERGED_MAXITS", "DIVERGED_MAX_IT"),
        (Status.max_seconds, "DIVERGED_USER", "DIVERGED_USER"),
    ],
)
def test_statuses_are_reasons(status, tao_reason, snes_reason):
    f, x, _ = single(None)
    tao, _ = tao_of(TaoSolver(Ends(status), f), x)
    tao.solve()
    assert tao.getConvergedReason() == getattr(load_petsc().TAO.ConvergedReason, tao_reason)
    snes, _ = snes_of(SnesSolver(Ends(status)), f, x)
    snes.solve(None, snes.getSolution())
    assert snes.getConvergedReason() == getattr(load_petsc().SNES.ConvergedReason, snes_reason)
    result = minimise(f, x, Tao("python", solver=Ends(status)), stop=Stop(5))
    assert result.status is status


def test_what_is_not_finite_diverges():
    f = Failing(quadratic(6), 3, lambda: torch.tensor(torch.nan, dtype=torch.float64))
    tao, _ = tao_of(TaoSolver(Sgd(lr=0.01), f), torch.zeros(6, dtype=torch.float64))
    tao.solve()
    assert tao.getConvergedReason() == load_petsc().TAO.ConvergedReason.DIVERGED_NAN
    f.calls = 0
    result = minimise(f, torch.zeros(6, dtype=torch.float64), Tao("python", solver=Sgd(lr=0.01)), stop=Stop(9))
    assert result.status is Status.diverged


def test_values_are_for_tao_alone():
    f, x, _ = single(AdaGrad())
    with counting() as cost:
        tao, _ = tao_of(TaoSolver(AdaGrad(), f), x)
        tao.setMaximumIterations(4)
        tao.solve()
    assert (cost.gradients, cost.values) == (5, 0)
    tao, _ = tao_of(TaoSolver(AdaGrad(), WithoutValue(f), values=False), x)
    tao.setMaximumIterations(4)
    tao.solve()
    assert tao.getIterationNumber() == 4


def test_a_sampled_objective_is_sampled_anew_for_every_step():
    from mldd.algebra import Noisy

    f = Noisy(quadratic(8, condition=10.0), 0.1)
    x = torch.zeros(8, dtype=torch.float64)
    expected, _ = iterates(f, x, AdaGrad(), 6)
    tao, vec = tao_of(TaoSolver(AdaGrad(), f), x)
    tao.setMaximumIterations(6)
    tao.solve()
    assert_same(as_tensor(vec), expected[-1])
    found, _ = iterates(f, x, Tao("python", solver=AdaGrad()), 6)
    assert_same(found[-1], expected[-1])


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_the_exception_of_an_objective_comes_out_as_it_was(kind, capfd):
    def fail():
        raise kind("mine")

    x = torch.zeros(6, dtype=torch.float64)
    with pytest.raises(kind, match="mine"):
        minimise(Failing(quadratic(6), 3, fail), x, Tao("python", solver=AdaGrad()), stop=Stop(9))
    tao, _ = tao_of(TaoSolver(AdaGrad(), Failing(quadratic(6), 3, fail)), x)
    with pytest.raises(
        load_petsc().Error
    ) as caught:  # a loop of PETSc's own: petsc4py keeps the exception as the cause
        tao.solve()
    assert isinstance(caught.value.__cause__, kind)
    assert capfd.readouterr().err == ""


def test_view_prints_the_solver_and_its_levels(capfd):
    f, x, solver = multilevel()
    tao, _ = tao_of(TaoSolver(solver, f), x)
    tao.view()
    out = capfd.readouterr().out
    assert "mldd solver ml-adagrad(smoother=adagrad(varsigma=0.01," in out and "unknowns" in out and "225" in out
    tao.destroy()


def test_every_solver_has_a_stage_of_the_log():
    code = """
        import torch
        from mldd.ranks import insert_options
        insert_options(["-log_view"])
        from mldd.loop import minimise, Stop
        from mldd.solvers import AdaGrad
        from mldd.solvers.petsc import Tao
        from tests.helpers import quadratic
        minimise(quadratic(10), torch.zeros(10, dtype=torch.float64), Tao("python", solver=AdaGrad()), stop=Stop(3))
    """
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1:    mldd adagrad:" in done.stdout


# SNES


def snes_of(context, f, x, **tolerances):
    """Return SNES with an mldd solver in it, and its solution."""
    snes, vec = load_petsc().SNES().createPython(context, comm=load_petsc().COMM_SELF), as_vec(x.clone())
    snes.setFunction(lambda snes, v, out: write(f.gradient(torch.from_numpy(v.array_r.copy())), out), vec.duplicate())
    snes.setTolerances(**{"rtol": 0.0, "atol": 0.0, "stol": 0.0} | tolerances)
    snes.setSolution(vec)
    return snes, vec


@pytest.mark.parametrize("given", [True, False])
def test_snes_does_the_steps_of_minimise(given):
    f, x, solver = single(AdaGrad(curvature="lbfgs"))
    expected, _ = iterates(f, x, solver, 6)
    norms = []
    snes, vec = snes_of(SnesSolver(solver, f if given else None, steps=2), f, x, max_it=3)
    snes.setMonitor(lambda snes, k, norm: norms.append(norm))
    snes.solve(None, vec)
    assert_same(as_tensor(vec), expected[-1])
    assert norms == pytest.approx([float(f.gradient(y).norm()) for y in expected[::2]])
    assert snes.getConvergedReason() == load_petsc().SNES.ConvergedReason.DIVERGED_MAX_IT
    snes.setTolerances(atol=1e-6, max_it=1000)
    snes.solve(None, vec)
    assert snes.getConvergedReason() == load_petsc().SNES.ConvergedReason.CONVERGED_FNORM_ABS


def test_a_right_hand_side_shifts_the_equation():
    f, x, _ = single(None)
    b = torch.linspace(-1, 1, 12, dtype=torch.float64)
    snes, vec = snes_of(SnesSolver(LBFGS(), f), f, x, atol=1e-9)
    snes.solve(as_vec(b.clone()), vec)
    assert snes.getConvergedReason() > 0
    assert_same(as_tensor(vec), torch.linalg.solve(f.A, f.b + b))


@pytest.mark.parametrize("type", ["ngmres", "anderson", "qn"])
def test_a_preconditioner_in_a_snes_of_the_user(type):
    f, x, _ = single(None)
    snes, vec = load_petsc().SNES().create(load_petsc().COMM_SELF), as_vec(x.clone())
    snes.setFunction(lambda snes, v, out: write(f.gradient(torch.from_numpy(v.array_r.copy())), out), vec.duplicate())
    snes.setType(type)
    snes.setNPCSide(load_petsc().PC.Side.RIGHT)
    npc = snes.getNPC()
    npc.setType("python")
    npc.setPythonContext(SnesSolver(Sgd(lr=0.05), f))
    snes.setTolerances(atol=1e-8, rtol=0.0, stol=0.0)
    snes.setFromOptions()  # without, SNESQN is not set up whole and PETSc crashes
    before = copies.vectors
    snes.solve(None, vec)
    assert copies.vectors - before == 0
    assert snes.getConvergedReason() == load_petsc().SNES.ConvergedReason.CONVERGED_FNORM_ABS
    torch.testing.assert_close(as_tensor(vec), f.solution(), rtol=0, atol=1e-7)


def test_a_map_starts_anew_each_time():
    f, x, _ = single(None)
    snes, vec = snes_of(SnesSolver(AdaGrad(), f), f, x, max_it=1)
    snes.setNormSchedule(load_petsc().SNES.NormSchedule.NONE)
    once, _ = iterates(f, x, AdaGrad(), 1)
    twice, _ = iterates(f, once[-1], AdaGrad(), 1)
    snes.solve(None, vec)
    snes.solve(None, vec)
    assert_same(as_tensor(vec), twice[-1])


# by name


def builder(**options):
    given = {"parts": 4, "overlap": 1, "levels": 3, "combine": None, "local_steps": None, "petsc": []} | options
    return Builder(argparse.Namespace(**given), Preparation(Obstacle(n=15)))


@pytest.mark.parametrize("name", ["ml_adagrad", "dd_adagrad", "adagrad"])
def test_options_name_solvers(name):
    problem = Obstacle(n=15)
    f, x = problem.objective(), problem.initial()
    recursion = Recursion(model="auto", nested=0.1)  # as the problem asks for
    levels, parts = problem.coarse_hierarchy(3, 4), problem.decomposition(4, 1)
    solver = {
        "ml_adagrad": MultilevelAdaGrad(problem.hierarchy(3), coarse=replace(recursion, rtol=0.01)),
        "dd_adagrad": SchwarzAdaGrad(parts, levels, coarse=recursion, local_rtol=0.3),
        "adagrad": AdaGrad(),
    }[name]
    expected, _ = iterates(f, x, solver, 4)
    load_petsc().Options().setValue("tao_python_type", f"mldd.solvers.petsc.petsc_types.{name}")
    try:
        with builder().in_use():
            found, _ = iterates(f, x, Tao("python"), 4)
    finally:
        load_petsc().Options().delValue("tao_python_type")
    assert_same(found[-1], expected[-1])


def test_a_name_needs_a_run(capfd):
    load_petsc().Options().setValue("tao_python_type", "mldd.solvers.petsc.petsc_types.adagrad")
    try:
        with pytest.raises(RuntimeError, match=r"petsc_types.adagrad needs a problem, got none; use the command line"):
            minimise(Rosenbrock(4), Rosenbrock(4).start(), Tao("python"), stop=Stop(2))
    finally:
        load_petsc().Options().delValue("tao_python_type")
    assert capfd.readouterr().err == ""


def test_python_without_a_solver_is_refused():
    with pytest.raises(ValueError, match="`type` python needs a `solver`, got none"):
        minimise(Rosenbrock(4), Rosenbrock(4).start(), Tao("python"), stop=Stop(2))


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no solver 'adagard'"):
        python_types.adagard  # noqa: B018


def test_vectors_must_be_whole():
    f, x, _ = single(None)
    comm = load_petsc().COMM_WORLD
    assert comm.getSize() == 1
    tao, vec = tao_of(TaoSolver(AdaGrad(), f), x)
    tao.setMaximumIterations(2)
    tao.solve()
    assert read(vec, torch.empty_like(x)).isfinite().all()
