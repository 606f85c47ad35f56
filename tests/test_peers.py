"""Benchmarks beside peers: every one runs in its quick form, and one number of each is right."""

import importlib
import json
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from experiments.benchmarks.peers_pde import PROBLEMS
from experiments.benchmarks.snes_multigrid import solve
from experiments.machine import Limits, Need
from experiments.peers import overhead, profiles
from experiments.peers.benchmark import Benchmark, Outside, quartiles
from experiments.peers.race import Budget, Mark, Race, Task, ours, raced, tuned
from mldd import Stop, minimise
from mldd.algebra import ModuleObjective
from mldd.ranks import SERIAL, Communicator
from mldd.solvers import LBFGS, Adam


def rows_of(name):
    """The rows of the quick run, by method and target."""
    benchmark = importlib.import_module(f"experiments.peers.{name}").BENCHMARK.small()
    rows = list(benchmark.rows(SERIAL))[-1]
    return {(row["method"], row["target"]): row for row in rows}


def reached(row):
    return not math.isnan(row["gradients"])


# ------------------------------------------------------------------------------------------------ B1 to B8


def test_b1_lbfgs_and_apts_are_sooner_than_adam():
    rows = rows_of("digits")
    assert reached(rows["lbfgs", 1e-6]) and reached(rows["apts", 1e-2])
    assert not reached(rows["adam", 1e-2])
    assert rows["dd4ml, first order, repaired", 1e-2]["source"] == "recorded"


def test_b2_mspqn_needs_fewer_gradients_than_lbfgs():
    rows = rows_of("poisson")
    assert rows["mspqn", 1e-3]["gradients"] < 400 and not reached(rows["lbfgs", 1e-4])
    assert rows["mspqn", 1e-3]["vectors"] < rows["mspqn", 1e-3]["gradients"]


def test_b3_windows_are_solved():
    rows = rows_of("windows")
    assert reached(rows["lbfgs", 1e-2])
    assert rows["fbpinns adam (JAX)", 3.9e-3]["source"] == "recorded"


def test_b4_nested_iteration_over_depths_fits_early():
    row = rows_of("depth")["ml-lbfgs, full, 3 levels", 1e-1]
    assert row["gradients"] <= 110


def test_b5_torch_geometric_does_the_same_steps_of_adam():
    pytest.importorskip("torch_geometric")
    rows = rows_of("graphs")
    for target in (0.5, 0.1):
        ours_, theirs = rows["adam", target], rows["torch_geometric adam", target]
        assert ours_["gradients"] == theirs["gradients"] + 1 > 1  # ours has the gradient of the iterate, too
    assert rows["lbfgs", 0.1]["gradients"] < rows["adam", 0.1]["gradients"]


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_b6_levels_and_snes_with_multigrid_find_the_same_point(name):
    pytest.importorskip("petsc4py")
    from experiments.peers.bounds import multilevel

    (discretise, make), n = PROBLEMS[name], 31
    problem, here = make(n), discretise(n)
    f, x = problem.objective(), problem.initial()
    end = minimise(f, x, multilevel(problem, 0.0), stop=Stop(50, rtol=1e-9), values=False).x
    u, _, _ = solve(discretise, n, 1e-9)
    np.testing.assert_allclose(end.numpy().reshape(n, n), u[1:-1, 1:-1], atol=1e-6)
    frame = here.frame.copy()
    frame[1:-1, 1:-1] = x.numpy().reshape(n, n)
    assert here.measure(frame) == pytest.approx(f.bounds.measure(x, f.gradient(x)), rel=1e-10)


def test_b6_levels_solve_to_the_last_target():
    pytest.importorskip("petsc4py")
    rows = rows_of("bounds")
    assert reached(rows["ml-adagrad", 1e-8])
    assert rows["snes multigrid", 1e-8]["cpu"] > 0
    assert rows["scipy l-bfgs-b", 1e-2]["gradients"] > 3


def test_b7_burgers_runs_for_its_budget():
    rows = rows_of("burgers")
    assert rows["lbfgs", 1e-2]["setup"] > 0 and not reached(rows["lbfgs", 1e-2])
    assert rows["ml_apts", ""]["source"] == "absent"


def test_b8_a_step_of_adam_is_a_gradient(monkeypatch):
    from experiments.gpu.device import Device

    monkeypatch.setattr(overhead, "SIZES", {1: overhead.Size(8, (8,), 64, 20)})
    found = {row["method"]: row for row in overhead.rows([1], ["adam", "localsgd", "torch lbfgs"], 1, Device("cpu"))}
    assert found["adam"]["gradients_per_step"] == pytest.approx(1 + 1 / 20)
    assert found["localsgd"]["gradients_per_step"] == pytest.approx(10)
    assert found["torch lbfgs"]["gradients_per_step"] >= 1
    assert {row["source"] for row in overhead.recorded()} == {"recorded"}


# ------------------------------------------------------------------------------------------------ what they share


@dataclass(frozen=True)
class Squares:
    """f(x) = |x|^2 from x = (1, 1, 1, 1)."""

    comm: Communicator = SERIAL

    def objective(self):
        return ModuleObjective(torch.nn.Linear(4, 1, bias=False).double(), lambda m: m.weight.square().sum())

    def initial(self, seed=0):
        return torch.ones(4, dtype=torch.float64)


def squares(**budget):
    """The problem, judged by the largest |x_i|."""
    number = lambda problem: lambda x: float(x.abs().max())  # noqa: E731
    return Task("squares", Squares, number, (0.5, 1e-3), Need(100.0), True, Budget(pause=0.0, warm=False, **budget))


def test_a_mark_is_the_first_at_or_below_a_target():
    race = Race(squares(), None, SERIAL, 0, [Mark(v, k, k, 10 * k) for k, v in enumerate((4.0, 2.0, 1.0, 0.003))])
    assert race.goals == [2.0, 0.004]
    rows = list(race.rows(Limits(1e9, {"float64": 1e4})))
    assert [row["gradients"] for row in rows] == [10, 30]
    assert [row["cpu"] for row in rows] == [1, 3]
    assert rows[0]["share"] == pytest.approx(10 * 100.0 / 1e4 / 1)


def test_a_run_ends_with_its_budget_and_its_missed_target_is_empty():
    race = raced(squares(gradients=5), ours(lambda p, rate: Adam(1e-9)), 0, 0.0, SERIAL)
    assert race.marks[-1].gradients == 5
    assert all(math.isnan(row["cpu"]) for row in race.rows(Limits(1e9, {"float64": 1e9})))


def test_the_sweep_takes_the_rate_that_gets_there():
    method = ours(lambda p, rate: Adam(rate), (1e-9, 0.1))
    assert tuned(squares(gradients=100), method, 0, SERIAL) == 0.1


def test_runs_that_miss_a_target_count_as_infinitely_long():
    rows = [{"cpu": 1.0}, {"cpu": 2.0}, {"cpu": ""}]
    assert quartiles(rows, "cpu", 3) == (2.0, 2.0, math.inf)
    assert quartiles(rows[:1], "cpu", 3)[1] == math.inf


def test_a_benchmark_goes_on_and_names_absent_peers(tmp_path):
    task = squares(gradients=20)
    recorded = ({"problem": "squares", "method": "peer", "target": 0.5, "cpu": 3.0, "source": "recorded"},)
    outside = {"one": Outside(None, recorded), "two": Outside(None)}
    methods = {"lbfgs": ours(lambda p, rate: LBFGS())}
    made = Benchmark(str(tmp_path / "some.py"), (task,), lambda task: methods, ("lbfgs",), outside=outside)
    rows = list(made.rows(SERIAL))[-1]
    assert [row["source"] for row in rows] == ["measured", "measured", "recorded", "absent"]
    done = [{key: str(value) for key, value in row.items()} for row in rows[:2]]
    again = list(made.rows(SERIAL, (0, 1), done))[-1]
    assert [row["seed"] for row in again[:4]] == ["0", "0", 1, 1]


def test_profiles_agree_with_those_by_hand():
    """Two solvers, three problems: costs 1, 2, - and 2, 1, 4; ratios 1, 2, inf and 2, 1, 1."""
    costs = {"a": {"p": 1.0, "q": 2.0}, "b": {"p": 2.0, "q": 1.0, "r": 4.0}}
    found = profiles.ratios(costs)
    np.testing.assert_array_equal(found["a"], [1.0, 2.0, math.inf])
    np.testing.assert_array_equal(found["b"], [2.0, 1.0, 1.0])
    np.testing.assert_allclose(profiles.profile(found["a"], (1.0, 2.0, 100.0)), [1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(profiles.profile(found["b"], (1.0, 2.0)), [2 / 3, 1.0])
    counts = profiles.ratios({"a": {"p": 0.0}, "b": {"p": 3.0}}, 1.0)
    np.testing.assert_array_equal([counts["a"][0], counts["b"][0]], [1.0, 4.0])


def test_a_profile_is_of_problems_on_which_all_ran_and_of_the_best_variant():
    def row(method, problem, cpu, setup):
        kind = {"benchmark": "some", "problem": problem, "target": "0.1", "seed": "0", "source": "measured"}
        return kind | {"method": method, "cpu": cpu, "setup": setup}

    rows = [row("aspqn", "p", "1", "1"), row("mspqn, layers", "p", "", "1"), row("lbfgs", "p", "3", "0")]
    rows += [row("aspqn", "q", "1", "1"), row("adam", "p", "1", "1")]
    found = profiles.costs_of(rows, ("aspqn", "lbfgs"), "total")
    assert found == {"aspqn": {"some p 0.1 0": 2.0}, "lbfgs": {"some p 0.1 0": 3.0}}


def test_profiles_of_synchronisations_leave_out_problems_that_are_not_divided():
    def row(benchmark, method, vectors):
        kind = {"problem": "p", "target": "0.1", "seed": "0", "source": "measured", "cpu": "1", "setup": "0"}
        return kind | {"benchmark": benchmark, "method": method, "vectors": vectors}

    rows = [row(name, method, "7") for name in ("digits", "depth") for method in ("aspqn", "lbfgs")]
    assert set(profiles.costs_of(rows, ("aspqn", "lbfgs"), "cpu")["aspqn"]) == {"digits p 0.1 0", "depth p 0.1 0"}
    assert profiles.costs_of(rows, ("aspqn", "lbfgs"), "vectors")["aspqn"] == {"digits p 0.1 0": 7.0}
    assert "vectors" in profiles.costs_in("training") and "vectors" not in profiles.costs_in("bounds")


def test_least_seconds_are_those_of_the_slower_limit():
    limits = Limits(1e9, {"float64": 1e10}, latency=1e-3)
    assert limits.least(Need(1e7, 5e6), 10, 2) == pytest.approx(10 * 5e-3 + 2e-3)
    assert limits.least(Need(1e9, 5e6), 10, 0) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------ the script for a GPU


def test_everything_for_a_gpu_runs_on_a_cpu(tmp_path, monkeypatch):
    from experiments.benchmarks import gpu

    out = tmp_path / "cpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--out", str(out)])
    gpu.main()
    found = json.loads(out.read_text())
    assert set(found["sections"]) == set(gpu.SECTIONS)
    for name in ("layers", "solvers"):
        assert all(row["agrees"] for row in found["sections"][name]["rows"])
    errors = [row for of in found["sections"].values() for row in of.get("rows", [of]) if "error" in row]
    assert [row for row in errors if "torch_geometric" not in str(row) and "MPI" not in str(row)] == []
    (aggregation,) = [row for row in found["sections"]["graphs"]["rows"] if row["case"] == "A H, mldd"]
    assert aggregation["difference"] < 1e-5
    assert found["sections"]["ranks"]["rows"][0]["difference"] < 1e-10


def test_a_section_that_fails_is_a_row_and_not_the_end(monkeypatch):
    from experiments.benchmarks import gpu
    from experiments.gpu.device import Device, attempts

    device = Device("cpu", quick=True)
    rows = attempts({"bad": lambda: 1 / 0, "good": lambda: {"ms": 1.0}}, device)
    assert "ZeroDivisionError" in rows[0]["error"] and rows[1]["ms"] == 1.0
    monkeypatch.setattr(gpu, "section", lambda name: lambda device: 1 / 0)
    assert "ZeroDivisionError" in gpu.run("layers", device)["error"]
    late = Device("cpu", end=0.0)
    assert "left out" in gpu.run("layers", late) and "left out" in attempts({"case": dict}, late)[0]


def test_a_checkout_needs_no_lazy_loader():
    import lazy_loader

    import mldd.loop
    from experiments.gpu.checkout import attach_stub

    theirs, ours_ = (
        lazy_loader.attach_stub("mldd.loop", mldd.loop.__file__),
        attach_stub("mldd.loop", mldd.loop.__file__),
    )
    assert sorted(theirs[2]) == ours_[2]
    for name in ours_[2]:
        assert ours_[0](name) is theirs[0](name)
    with pytest.raises(AttributeError, match="nothing"):
        ours_[0]("nothing")
