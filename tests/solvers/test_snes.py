"""SNES, one iteration per step: the iterates of plain petsc4py, and mldd's maps as nonlinear preconditioners."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch

pytest.importorskip("petsc4py", reason="petsc4py is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")

from mldd.algebra import DIFFERENCES, counting  # noqa: E402
from mldd.loop import State, Status, Stop, minimise  # noqa: E402
from mldd.problems.grids import Quadratic  # noqa: E402
from mldd.ranks import as_tensor, as_vec, insert_options, load_petsc, read, write
from mldd.ranks.petsc import copies  # noqa: E402
from mldd.solvers import (
    SchwarzAdaGrad,  # noqa: E402
    Sgd,  # noqa: E402
)
from mldd.solvers.petsc import Snes  # noqa: E402
from mldd.solvers.petsc.snes_problem import TYPES  # noqa: E402
from tests.helpers import Failing, Rosenbrock, WithoutValue, quadratic  # noqa: E402

PLAIN = [t for t in TYPES if t != "python"]


def start(n=15):
    return torch.zeros(n, dtype=torch.float64)


@pytest.fixture
def options():
    """Options in PETSc's database for one test."""
    names = []

    def put(*words):
        insert_options(words)
        names.extend(word[1:] for word in words if word[0] == "-" and word[1].isalpha())

    yield put
    for name in names:
        load_petsc().Options().delValue(name)


def iterates(solver, f, x, steps):
    found = []
    stop = Stop(steps, atol=1e-9)
    result = minimise(f, x, solver, stop=stop, after_step=lambda x, state, history: found.append(x.clone()))
    return torch.stack(found[1:]), result


def by_petsc(type, f, x, steps, prepare=lambda snes: None):
    """Return the iterates of SNES, set up by hand."""
    snes, vec = load_petsc().SNES().create(load_petsc().COMM_SELF), as_vec(x.clone())
    out, found = vec.duplicate(), []

    def jacobian(snes, v, J, P):
        J.setValues(range(f.size), range(f.size), f.A.numpy())
        J.assemble()

    snes.setType(type)
    snes.setFunction(lambda snes, v, out: write(f.gradient(as_tensor_of(v)), out), out)
    if type not in ("ngmres", "anderson"):
        snes.setObjective(lambda snes, v: float(f.value(as_tensor_of(v))))
    if isinstance(f, type_of_quadratic):
        snes.setJacobian(
            jacobian, load_petsc().Mat().createDense((f.size, f.size), comm=load_petsc().COMM_SELF).setUp()
        )
    snes.getKSP().setType("stcg")
    snes.getKSP().getPC().setType("none")
    snes.setNPCSide(load_petsc().PC.Side.LEFT if type in ("ncg", "nrichardson") else load_petsc().PC.Side.RIGHT)
    prepare(snes)
    snes.setTolerances(rtol=0.0, atol=1e-9, stol=0.0, max_it=steps)
    snes.setMonitor(lambda snes, k, norm: found.append(as_tensor_of(snes.getSolution())))
    snes.setFromOptions()
    snes.solve(None, vec)
    snes.destroy()
    return torch.stack(found[1:])


type_of_quadratic = quadratic(2).__class__


def as_tensor_of(vec):
    return torch.from_numpy(vec.array_r.copy())


class Map:
    """A Python type of petsc4py's, without mldd: gradient steps."""

    def __init__(self, f, lr, steps=1):
        self.f, self.lr, self.steps = f, lr, steps

    def solve(self, snes, b, x):
        y = as_tensor_of(x)
        for _ in range(self.steps):
            y = y - self.lr * self.f.gradient(y)
        write(y, x)
        g = self.f.gradient(y)
        write(g, snes.getFunction()[0])
        snes.setFunctionNorm(float(g.norm()))
        snes.setConvergedReason(5)


@pytest.mark.parametrize("type", PLAIN)
def test_the_iterates_are_those_of_petsc(type):
    f = quadratic(15, condition=20.0)
    mine, _ = iterates(Snes(type), f, start(), 8)
    theirs = by_petsc(type, f, start(), 8)
    common = min(len(mine), len(theirs))
    assert common >= 2 or type in ("newtonls", "vinewtonrsls")
    torch.testing.assert_close(mine[:common], theirs[:common], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("type", ["ngmres", "anderson", "qn", "ncg", "nrichardson"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_preconditioner_is_the_one_of_petsc(type, steps):
    f = quadratic(15, condition=20.0)

    def prepare(snes):
        npc = snes.getNPC()
        npc.setType("python")
        npc.setPythonContext(Map(f, 0.05, steps))

    mine, _ = iterates(Snes(type, npc=Sgd(lr=0.05), npc_steps=steps), f, start(), 8)
    theirs = by_petsc(type, f, start(), 8, prepare)
    torch.testing.assert_close(mine, theirs[: len(mine)], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("type", ["newtonls", "vinewtonrsls"])
def test_newton_solves_a_quadratic_in_one_step(type, options):
    options("-ksp_rtol", "1e-10")
    f = quadratic(15, condition=20.0)
    result = minimise(f, start(), Snes(type), stop=Stop(3, atol=1e-7))
    assert (result.status, result.record.step) == (Status.converged_atol, 1)
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("type", ["newtonls", "newtontr"])
def test_newton_on_a_problem_that_is_not_convex(type):
    f = Rosenbrock(8)
    result = minimise(f, f.start(), Snes(type), stop=Stop(300, atol=1e-8))
    assert result.status is Status.converged_atol


def test_without_hessian_products_newton_takes_differences():
    f = Failing(quadratic(15, condition=20.0), 10**9, lambda: torch.zeros(()))  # it offers none
    for type in ("newtonls", "newtontr"):
        result = minimise(f, start(), Snes(type), stop=Stop(30, atol=1e-6))
        assert result.status is Status.converged_atol
        assert DIFFERENCES in result.state.notes


def test_bounds_of_a_variational_inequality():
    f = quadratic(15, condition=20.0, bounded=True)
    result = minimise(f, f.bounds.project(start()), Snes("vinewtonrsls"), stop=Stop(50, atol=1e-8))
    assert result.status is Status.converged_atol and f.bounds.violation(result.x) <= 1e-8


class Identity:
    """The map that leaves everything where it is."""

    def init(self, objective, x):
        return State()

    def step(self, objective, x, state):
        return x, state


def test_the_identity_as_preconditioner_changes_nothing_for_newton():
    f = Rosenbrock(6)
    plain, _ = iterates(Snes("newtonls"), f, f.start(), 6)
    other, result = iterates(Snes("newtonls", npc=Identity()), f, f.start(), 6)
    torch.testing.assert_close(plain, other, rtol=1e-8, atol=1e-8)


def test_the_identity_from_the_left_leaves_nothing_to_solve():
    f = quadratic(6)
    result = minimise(f, start(6), Snes("nrichardson", npc=Identity()), stop=Stop(4))
    assert torch.equal(result.x, start(6))


def test_a_linear_map_is_accelerated_as_krylov_methods_do():
    """NGMRES and Anderson on a linear fixed-point iteration are GMRES: as many steps as eigenvalues differ."""
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    A = (Q * torch.tensor([1.0, 2.0, 4.0, 7.0] * 5, dtype=torch.float64)) @ Q.T
    f = quadratic(20)
    f = f.__class__((A + A.T) / 2, f.b, f.bounds)
    for type in ("ngmres", "anderson"):
        result = minimise(f, start(20), Snes(type, npc=Sgd(lr=0.1)), stop=Stop(20, atol=1e-9))
        assert result.status is Status.converged_atol and result.record.step <= 5, type


def test_schwarz_is_accelerated():
    problem = Quadratic(31, dim=1)
    f, x = problem.objective(), problem.initial()
    schwarz = SchwarzAdaGrad(problem.decomposition(4, 1), local_steps=5, global_steps=0)
    alone = minimise(f, x, schwarz, stop=Stop(400, atol=1e-6)).record.step
    for type in ("ngmres", "anderson", "qn"):
        result = minimise(f, x, Snes(type, npc=schwarz), stop=Stop(400, atol=1e-6))
        assert result.status is Status.converged_atol, type
        assert result.record.step < alone / 2, type


def test_gradients_at_iterates_and_preconditioned_points_are_evaluated_once():
    f = quadratic(15, condition=20.0)
    result = minimise(f, start(), Snes("ngmres", npc=Sgd(lr=0.05)), stop=Stop(10))
    # One at the start; per step the map's result and the combination; the map starts from a gradient that is known,
    # and so does the loop unless the next iterate is neither of the two.
    assert result.record.cost.gradient_evaluations <= 1 + 3 * 10
    result = minimise(f, start(), Snes("anderson"), stop=Stop(10))
    assert result.record.cost.gradient_evaluations == 11


def test_float64_shares_memory():
    f = quadratic(15, condition=20.0)
    before = copies.vectors
    minimise(f, start(), Snes("ngmres", npc=Sgd(lr=0.05)), stop=Stop(5))
    assert copies.vectors == before
    g = quadratic(15, condition=20.0, dtype=torch.float32)
    result = minimise(g, torch.zeros(15), Snes("ngmres", npc=Sgd(lr=0.05)), stop=Stop(50, atol=1e-3))
    assert copies.vectors > before and result.x.dtype == torch.float32
    assert result.status is Status.converged_atol


def test_a_method_without_values_needs_none():
    f = WithoutValue(quadratic(15, condition=20.0))
    result = minimise(f, start(), Snes("anderson", npc=Sgd(lr=0.05)), stop=Stop(50, atol=1e-8), values=False)
    assert result.status is Status.converged_atol


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("npc", [None, Sgd(lr=0.05)], ids=["plain", "npc"])
def test_the_exception_of_a_callback_comes_out_as_it_was(kind, at, npc, capfd):
    def fail():
        raise kind("mine")

    f = Failing(quadratic(6), at, fail)
    with pytest.raises(kind, match="mine"):
        minimise(f, start(6), Snes("ngmres", npc=npc), stop=Stop(50))
    assert capfd.readouterr().err == ""


class Breaks(Identity):
    def step(self, objective, x, state):
        raise ZeroDivisionError("inside")


def test_the_exception_of_a_preconditioner_comes_out_as_it_was(capfd):
    with pytest.raises(ZeroDivisionError, match="inside"):
        minimise(quadratic(6), start(6), Snes("qn", npc=Breaks()), stop=Stop(5))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("type", ["newtonls", "ngmres", "anderson", "qn"])
def test_a_gradient_that_is_not_finite_is_divergence(type):
    f = Failing(quadratic(6), 2, lambda: torch.tensor(math.nan, dtype=torch.float64))
    result = minimise(f, start(6), Snes(type), stop=Stop(20))
    assert result.status is Status.diverged and bool(torch.isfinite(result.x).all())


def test_unfinished_runs_end_with_their_state(capfd):
    watched = []
    for _ in range(4):
        g = Failing(quadratic(6), 10**9, lambda: torch.zeros(()))
        watched.append(weakref.ref(g))
        result = minimise(g, start(6), Snes("anderson", npc=Sgd(lr=1e-3)), stop=Stop(3))
        assert result.status is Status.max_steps and result.state.run is not None
    with pytest.raises(TypeError, match="cannot be copied or saved"):
        copy.deepcopy(result.state)
    del g, result
    gc.collect()
    assert [w() for w in watched] == [None] * 4
    assert "".join(capfd.readouterr()) == ""


def test_one_inside_the_other():
    f = quadratic(10, condition=20.0)
    inner = Snes("anderson", prefix="npc_inner_")
    result = minimise(f, start(10), Snes("ngmres", npc=inner, npc_steps=2), stop=Stop(30, atol=1e-8))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-7)


def test_options_and_prefix(options):
    options("-probe_snes_type", "anderson", "-probe_snes_max_it", "2", "-probe_snes_anderson_m", "3")
    f = quadratic(15, condition=20.0)
    result = minimise(f, start(), Snes("qn", prefix="probe_"), stop=Stop(5))
    assert result.state.run.session.problem.solver.getType() == "anderson"
    assert result.record.step == 5  # the loop's limit holds, not SNES's


def test_costs_are_counted_where_they_arise():
    f = quadratic(10, condition=20.0)
    solver, x = Snes("anderson"), start(10)
    with counting() as cost:
        state = solver.init(f, x)
        for _ in range(3):
            x, state = solver.step(f, x, state)
    assert cost.gradients == 4


def test_a_moved_iterate_starts_snes_anew():
    f = quadratic(10, condition=20.0)
    solver, moved = Snes("qn"), start(10)
    state = solver.init(f, moved)
    for _ in range(3):
        moved, state = solver.step(f, moved, state)
    moved.zero_()
    fresh = start(10)
    moved, state = solver.step(f, moved, state)
    fresh, _ = solver.step(f, fresh, solver.init(f, fresh))
    torch.testing.assert_close(moved, fresh, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Snes("aspin"), "wants a grid of PETSc's, got an objective; use mldd's own solver aspin"),
        (lambda: Snes("fas"), "'fas' wants a grid of PETSc's, got an objective; use schwarz"),
        (lambda: Snes("nonsense"), "one of newtonls .*got 'nonsense'"),
        (lambda: Snes("ncg", npc=Identity(), npc_side="right"), "knows a left preconditioner only, got side right"),
        (lambda: Snes("ngmres", npc_side="both"), "`npc_side` must be one of auto, left, right, got 'both'"),
        (lambda: Snes("ngmres", npc_steps=0), "`npc_steps` must be >= 1, got 0"),
        (lambda: Snes("ngmres", solver=Identity()), "`solver` is for `type` python, got 'ngmres'"),
        (lambda: Snes("python", npc=Identity()), "`npc` is for types of PETSc, got `type` python"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        minimise(quadratic(4), start(4), make(), stop=Stop(2))
    assert "\n" not in str(caught.value)


def test_bounds_are_refused_by_types_that_ignore_them():
    f = quadratic(4, bounded=True)
    with pytest.raises(ValueError, match="'ngmres' ignores bounds, got .*use vinewtonrsls"):
        minimise(f, f.bounds.project(start(4)), Snes("ngmres"), stop=Stop(2))


def test_read_keeps_what_it_is_given():
    assert torch.equal(as_tensor(as_vec(start(3))), read(as_vec(start(3)), start(3)))


class FailsWhenMade:
    def create(self, snes):
        raise ValueError("there is no such grid")


class FailsWhenCalled:
    def step(self, snes, x, f, y):
        raise ValueError("there is no such step")


@pytest.mark.parametrize(("context", "line"), [("FailsWhenMade", "such grid"), ("FailsWhenCalled", "such step")])
def test_an_exception_in_a_context_that_an_option_names_is_raised_as_it_is(context, line):
    options = load_petsc().Options()
    options["npc_snes_type"], options["npc_snes_python_type"] = "python", f"{__name__}.{context}"
    try:
        with pytest.raises(ValueError, match=line):
            minimise(quadratic(6), torch.zeros(6, dtype=torch.float64), Snes("ngmres"), stop=Stop(2))
    finally:
        options.delValue("npc_snes_type")
        options.delValue("npc_snes_python_type")
