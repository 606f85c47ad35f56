"""Specs of the command line: solvers nested in solvers, and what is refused in one line."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import pytest

from mldd.command import SOLVERS, described, main, name_of, names, solver_spec
from mldd.command.listing import keys
from mldd.command.names import known, problem, problem_spec, python_specs, split_specs
from mldd.command.values import split
from mldd.solvers import LBFGS, AdaGrad, Radius, TrustRegion
from mldd.solvers.petsc import Snes, Tao


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a=1,b=2", ["a=1", "b=2"]),
        ("local=lbfgs(memory=5,c1=1),combine=ras", ["local=lbfgs(memory=5,c1=1)", "combine=ras"]),
        ("a=b(c=d(e=1,f=2),g=3),h", ["a=b(c=d(e=1,f=2),g=3)", "h"]),
    ],
)
def test_split(text, pieces):
    assert split(text) == pieces


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("adam:lr=0.1,beta1=0.9,tao:blmvm,lbfgs", ["adam:lr=0.1,beta1=0.9", "tao:blmvm", "lbfgs"]),
        (
            "schwarz:local=lbfgs(memory=5,c1=1),combine=ras,snes:ngmres,npc=schwarz(local=tao(blmvm)),adam",
            ["schwarz:local=lbfgs(memory=5,c1=1),combine=ras", "snes:ngmres,npc=schwarz(local=tao(blmvm))", "adam"],
        ),
        ("tao(blmvm),lbfgs(memory=3)", ["tao(blmvm)", "lbfgs(memory=3)"]),
    ],
)
def test_split_specs(text, specs):
    assert split_specs(text) == specs


def test_a_metric_puts_a_solver_into_other_coordinates():
    spec = solver_spec("lbfgs:metric=inputs,rank=32,memory=5")
    assert spec.name == "whitened" and spec.text == "lbfgs:metric=inputs,rank=32,memory=5"
    assert {key: spec.keys[key] for key in ("metric", "rank")} == {"metric": "inputs", "rank": 32}
    assert spec.keys["solver"].name == "lbfgs" and spec.keys["solver"].keys == {"memory": 5}
    assert solver_spec("adam(metric=bias)").keys["solver"].name == "adam"
    assert solver_spec("whitened:metric=bias").keys == {"metric": "bias"}
    with pytest.raises(ValueError, match="`whitened:metric` must be one of inputs bias, got 'rows'"):
        solver_spec("lbfgs:metric=rows")
    with pytest.raises(ValueError, match="lbfgs has no key 'rank'"):
        solver_spec("lbfgs:rank=3")


def test_nested_solvers_are_specs():
    spec = solver_spec("snes:ngmres,npc=schwarz(local=tao(type=blmvm),local_steps=5),npc_steps=2")
    assert (spec.kind, spec.keys["type"], spec.keys["npc_steps"]) == (Snes, "ngmres", 2)
    schwarz = spec.keys["npc"]
    assert (schwarz.name, schwarz.keys["local_steps"]) == ("schwarz", 5)
    assert (schwarz.keys["local"].kind, schwarz.keys["local"].keys) == (Tao, {"type": "blmvm"})
    assert [s.name for s in spec.tree] == ["snes", "schwarz", "tao"]
    assert solver_spec("tao:python,solver=adagrad").keys["solver"].kind is AdaGrad
    assert solver_spec("tao:python,solver=lbfgs:memory=3").keys["solver"].keys == {"memory": 3}
    assert solver_spec("tao(bncg)").keys == {"type": "bncg"}
    assert solver_spec("snes:qn,npc=none").keys["npc"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snes:ngmres,npc=adagard", r"`snes:npc`: unknown solver 'adagard' \(did you mean adagrad\?\)"),
        (
            "snes:ngmres,npc=adagrad(varsgima=1)",
            r"`snes:npc`: adagrad has no key 'varsgima' \(did you mean varsigma\?\)",
        ),
        ("snes:ngmres,npc=adagrad(varsigma=a)", "`snes:npc`: `adagrad:varsigma` must be a number, got 'a'"),
        (
            "snes:ngmres,npc=adagrad(varsigma=1",
            "every parenthesis must have its partner, got 'ngmres,npc=.*; write NAME",
        ),
        ("snes:ngmres,npc=adagrad)", "every parenthesis must have its partner"),
        ("lbfgs(memory=5)x", "the keys of lbfgs must end with their parenthesis, got .*; write lbfgs"),
        ("snes:ngmres,npc=", "`snes:npc`: unknown solver ''"),
        ("lbfgs:local=adam", "lbfgs has no key 'local'"),
    ],
)
def test_bad_specs_are_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        solver_spec(text)
    assert "\n" not in str(caught.value)


def test_what_is_built_is_described_with_all_its_keys():
    tree = Snes("ngmres", npc=Tao("python", "npc_", solver=LBFGS(memory=3)))
    text = described(tree, "snes")
    assert text.startswith("snes:type=ngmres,prefix=,npc=tao(type=python,prefix=npc_,solver=lbfgs(memory=3,")
    assert text.endswith(")),npc_steps=1,npc_side=auto,solver=None")
    assert (name_of(tree), name_of(LBFGS())) == ("snes", "lbfgs")


def test_a_class_without_a_name_is_described_by_its_own():
    @dataclass(frozen=True)
    class Mine:
        rate: float = 1.0

    assert described(Mine()) == "Mine(rate=1.0)"


def test_names_that_set_a_field(monkeypatch):
    for order in ("additive", "multiplicative"):
        target = f"mldd.solvers.adagrad:AdaGrad?curvature={order}"
        monkeypatch.setitem(names.SOLVERS, order, target)
    others = {name: target for name, target in names.SOLVERS.items() if name != "adagrad"}
    monkeypatch.setattr(names, "SOLVERS", others)
    spec = solver_spec("additive:rate=0.5")
    assert (spec.fixed, spec.keys) == ({"curvature": "additive"}, {"rate": 0.5})
    with pytest.raises(ValueError, match="has no key 'curvature'"):
        solver_spec("additive:curvature=none")
    object.__setattr__(made := AdaGrad(), "curvature", "multiplicative")
    assert name_of(made) == "multiplicative"


def test_solvers_that_options_name():
    words = [
        "-npc_snes_type",
        "python",
        "-npc_snes_python_type",
        "mldd.solvers.petsc.petsc_types.dd_adagrad",
        "-snes_view",
    ]
    (spec,) = python_specs(words)
    assert spec.name == "dd-adagrad"
    assert python_specs(["-tao_python_type", "mine.Class", "-snes_monitor"]) == []


def test_every_name_has_its_class():
    for target in (*names.PROBLEMS.values(), *names.SOLVERS.values()):
        module, _, attribute = target.partition("?")[0].partition(":")
        assert find_spec(module) is not None, target
        assert hasattr(import_module(module), attribute), target


def test_keys_of_a_nested_record_have_its_name_in_front() -> None:
    solver = solver_spec("trust-region:radius.initial=0.5,radius.largest=2,memory=3").make()
    assert solver == TrustRegion(radius=Radius(initial=0.5, largest=2.0), memory=3)
    text = described(solver, "trust-region")
    assert "radius.initial=0.5" in text
    assert solver_spec(text).make() == solver
    with pytest.raises(ValueError, match=r"no key 'radius.inital' \(did you mean radius.initial"):
        solver_spec("trust-region:radius.inital=0.5")
    with pytest.raises(ValueError, match="`trust-region:radius.initial` must be a number"):
        solver_spec("trust-region:radius.initial=small")


def test_a_key_of_a_record_may_be_written_without_its_record() -> None:
    assert solver_spec("trust-region:initial=0.5").make() == TrustRegion(radius=Radius(0.5))
    assert solver_spec("trust-region:radius.initial=0.5").keys == solver_spec("trust-region:initial=0.5").keys
    with pytest.raises(ValueError, match="`trust-region:initial` must be a number"):
        solver_spec("trust-region:initial=small")
    with pytest.raises(ValueError, match="poisson1d has several keys 'count'; write one.count or two.count"):
        known({"one.count": int, "two.count": int}, "count", "poisson1d")
    assert known({"count": int, "two.count": int}, "count", "poisson1d") == "count"


def test_a_problem_is_made_in_python_by_the_keys_of_the_command_line() -> None:
    made = problem("poisson1d:points=20", depth=3)
    assert made == problem_spec("poisson1d:points=20,network.depth=3").make()
    assert problem(type(made), name="poisson1d", points=20).points == 20
    with pytest.raises(ValueError, match=r"no key 'dept' \(did you mean depth"):
        problem("poisson1d", dept=3)


def test_a_field_of_one_kind_of_solver_takes_no_other() -> None:
    spec = solver_spec("apts:local=trust-region(model=sr1,radius.initial=0.5)")
    assert spec.keys["local"].make() == TrustRegion("sr1", radius=Radius(0.5))
    with pytest.raises(ValueError, match="`apts:local` must be trust-region, got 'lbfgs'"):
        solver_spec("apts:local=lbfgs")


def test_a_listing_shows_the_keys_of_nested_records() -> None:
    lines = list(keys("trust-region"))
    assert "  radius.initial : number, default 1.0" in lines
    assert lines[lines.index("  radius.initial : number, default 1.0") + 1].strip() == "The first radius."
    assert "  local : trust-region, default trust-region" in list(keys("apts"))


def test_the_weights_of_aspqn_are_chosen_like_those_of_all_others(run, tmp_path):
    small = "train poisson1d:network.depth=4,network.width=5,points=20 --solver aspqn --parts 3 --overlap 1 --steps 2"
    found = []
    for combine in ("asm", "ras", "wasm"):
        code, _, error = run(f"{small} --combine {combine} --quiet --out", tmp_path / combine)
        assert code == 0, error
        found.append(json.loads((tmp_path / combine / "result.json").read_text()))
        assert f"combine={combine}" in found[-1]["options"]["solver"]
    assert len({one["loss"] for one in found}) == 3


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("tao", "snes", "aspin", "raspen")])
def test_the_example_of_a_solver_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = list(keys(name))[-1].removeprefix("example: mldd ")
    assert main([*shlex.split(example), "--steps", "1", "--quiet"]) == 0, capsys.readouterr().err
