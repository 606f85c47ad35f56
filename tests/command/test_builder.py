"""Trees of solvers from specs: every solver in the tree gets what it has a field for."""

from __future__ import annotations

import argparse

import pytest

from mldd.command import current, solver_spec
from mldd.command.builder import Builder, check_options
from mldd.command.preparation import Preparation
from mldd.problems.grids import Obstacle
from mldd.problems.images import Digits
from mldd.ranks import SERIAL
from mldd.solvers import AdaGrad, MultilevelAdaGrad, NonlinearSchwarz, SchwarzAdaGrad
from tests.helpers import OneOfFour


class Pair(OneOfFour):
    ranks = 2


def options(**given):
    names = ("parts", "overlap", "levels", "combine", "local_steps")
    return argparse.Namespace(**dict.fromkeys(names), **{"petsc": []}) if not given else _with(given)


def _with(given):
    new = options()
    for name, value in given.items():
        setattr(new, name, value)
    return new


def build(text, problem=None, **given):
    return Builder(options(**given), Preparation(problem or Obstacle(n=15), 7)).solver(solver_spec(text))


def test_subdomains_and_levels_reach_every_solver_of_the_tree():
    tree = build("snes:python,solver=tao(python,solver=dd-adagrad)", parts=9, overlap=2, levels=2, local_steps=3)
    schwarz = tree.solver.solver
    assert isinstance(schwarz, SchwarzAdaGrad)
    assert (schwarz.decomposition.parts, len(schwarz.hierarchy), schwarz.local_steps) == (9, 2, 3)
    assert isinstance(build("tao:python,solver=ml-adagrad").solver, MultilevelAdaGrad)


def test_the_number_of_subdomains_does_not_depend_on_that_of_ranks():
    spec = solver_spec("schwarz")
    problems = (Obstacle(n=15), 4), (Digits(samples=20), 3)  # by default, and as the problem advises
    for problem, parts in problems:
        shapes = [Builder(options(), Preparation(problem, 0, comm)).shape(spec) for comm in (SERIAL, Pair())]
        assert [shape["parts"] for shape in shapes] == [parts, parts]
    with pytest.raises(ValueError, match="must be >= 4, the number of ranks, got the default of 3; write --parts 4"):
        Builder(options(), Preparation(Digits(samples=20), 0, OneOfFour())).shape(spec)


def test_solvers_of_parts_get_no_subdomains():
    tree = build("schwarz:local=adagrad(rate=0.5),coarse.solver=tao(blmvm)", combine="wasm", levels=2)
    assert isinstance(tree, NonlinearSchwarz) and tree.combine == "wasm" and len(tree.hierarchy) == 2
    assert tree.local == AdaGrad(rate=0.5)
    for text in ("schwarz:local=dd-adagrad", "schwarz:coarse.solver=ml-adagrad", "snes:qn,npc=schwarz(local=schwarz)"):
        with pytest.raises(ValueError, match="decomposes the whole problem, got it as the solver of a part of it; use"):
            build(text, levels=2)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("dd-adagrad:coarse.steps=3", "coarse.steps"),
        ("schwarz:coarse.solver=lbfgs", "coarse.solver"),
        ("tao:python,solver=dd-adagrad(coarse.cycle=W)", "coarse.cycle"),
    ],
)
def test_keys_of_coarse_levels_are_refused_on_one_level(text, key):
    with pytest.raises(ValueError, match=rf":{key} is of no use on one level, got .*; add --levels 2, or leave it out"):
        build(text)
    assert build(text, levels=2)


def test_prefixes_are_the_names_of_the_fields_on_the_way():
    tree = build("snes:ngmres,npc=schwarz(local=tao(blmvm),coarse.solver=snes(newtonls))", levels=2)
    assert (tree.prefix, tree.npc.local.prefix, tree.npc.coarse.solver.prefix) == ("", "npc_local_", "npc_coarse_")
    assert build("schwarz:local=tao(blmvm,prefix=mine_)").local.prefix == "mine_"
    assert build("schwarz:local=tao").local.prefix == "local_"


def test_advice_of_the_problem_reaches_nested_solvers():
    problem = Digits(samples=100)
    advised = problem.settings("dd-adagrad")["local.rate"]
    assert advised != SchwarzAdaGrad.local.rate
    assert build("tao:python,solver=dd-adagrad", problem).solver.local.rate == advised
    nested = build("tao:python,solver=dd-adagrad(local=adagrad(rate=0.25))", problem).solver.local
    assert nested == AdaGrad(rate=0.25, varsigma=problem.settings("adagrad")["varsigma"])
    coarse = build("ml-adagrad:coarse.cap=7", problem, levels=2).coarse
    assert (coarse.cap, coarse.steps) == (7, problem.settings("ml-adagrad")["coarse.steps"])


@pytest.mark.parametrize("key", ["rate", "local.lr", "coarse.rate"])
def test_advice_that_no_field_takes_is_refused(key):
    class Advising(Obstacle):
        def settings(self, solver):
            return {key: 0.1, "parts": 4, "overlap": 1}

    with pytest.raises(ValueError, match=f"`settings` of problem Advising must name fields of dd-adagrad, got '{key}'"):
        build("dd-adagrad", Advising(n=15))


def test_the_shape_is_that_of_the_tree():
    def shape(text, **given):
        return Builder(options(**given), Preparation(Obstacle(n=15))).shape(solver_spec(text))

    assert shape("adagrad") == {"parts": 1, "overlap": 0, "levels": 1}
    assert shape("tao:python,solver=ml-adagrad") == {"parts": 1, "overlap": 0, "levels": 3}
    assert shape("snes:ngmres,npc=schwarz", parts=9) == {"parts": 9, "overlap": 1, "levels": 1}
    words = ["-tao_python_type", "mldd.solvers.petsc.petsc_types.dd_adagrad"]
    assert shape("tao:python", petsc=words, overlap=2, levels=2) == {"parts": 4, "overlap": 2, "levels": 2}


def test_options_that_nothing_in_the_tree_uses_are_refused():
    check_options(options(parts=4), [solver_spec("snes:ngmres,npc=schwarz")])
    check_options(options(levels=4, petsc=["-tao_python_type", "mldd.solvers.petsc.petsc_types.ml_adagrad"]), [])
    with pytest.raises(ValueError, match="--parts is of no use to solver snes:ngmres,npc=adagrad; leave it out"):
        check_options(options(parts=4), [solver_spec("snes:ngmres,npc=adagrad")])


def test_the_decomposition_is_made_once():
    builder = Builder(options(), Preparation(Obstacle(n=15)))
    first, second = (builder.solver(solver_spec("dd-adagrad")) for _ in range(2))
    assert first.decomposition is second.decomposition


def test_a_builder_in_use_is_the_current_one():
    builder = Builder(options(), Preparation(Obstacle(n=15)))
    assert current() is None
    with builder.in_use():
        assert current() is builder
    assert current() is None


@pytest.mark.parametrize("problem", ["digits", "sbm:subdomains=parameters"])
def test_layers_as_subdomains_have_as_many_parts_as_there_are_layers_by_default(problem, run):
    code, out, err = run(f"train {problem} --solver aspqn:local_steps=1,global_steps=0 --steps 1")
    assert (code, err) == (0, "") and "max_steps" in out
