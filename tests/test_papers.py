"""Experiments that follow papers: every script runs in its quick form, and one number of each is right."""

import importlib
import math
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize

from experiments.operators import samples
from experiments.pictures import curve, draw, groups, points, style_of
from experiments.study import Picture, Study, minimise, read
from mldd import Stop
from mldd.problems import PhysicsInformed
from mldd.problems.grids import Obstacle
from mldd.ranks import SERIAL
from mldd.solvers import AdaGrad

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in (ROOT / "experiments").glob("*/job.slurm") for path in folder.parent.glob("*.py"))


def rows_of(name):
    """Return the rows of the quick run of KEY.SCRIPT."""
    study = importlib.import_module(f"experiments.{name}").STUDY
    return list(study.rows(study.quick, SERIAL))[-1]


def by(rows, *names):
    return {tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]: row for row in rows}


# ------------------------------------------------------------------------------------------------ bounds and levels


def minimum_by_scipy(n):
    problem = Obstacle(n)
    f, x = problem.objective(), problem.initial()

    def both(y):
        value, g = f.value_and_gradient(torch.from_numpy(y))
        return float(value), g.numpy()

    box = [(float(lower), None) for lower in f.bounds.lower]
    limits = {"maxiter": 10000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10}
    return minimize(both, x.numpy(), jac=True, bounds=box, method="L-BFGS-B", options=limits).fun


def test_levels_do_not_change_the_number_of_steps():
    rows = by(rows_of("gratton2025recursive.levels"), "levels")
    several = [row["steps"] for levels, row in rows.items() if levels > 1]
    assert max(several) <= 1.5 * min(several)
    assert rows[4]["work"] < rows[1]["work"] / 2
    for row in rows.values():
        assert row["violation"] == 0.0
        assert row["energy"] == pytest.approx(minimum_by_scipy(31), rel=1e-6)


def test_subdomains_do_not_change_the_number_of_steps_on_two_levels():
    rows = by(rows_of("gratton2025recursive.subdomains"), "levels", "parts")
    assert rows[2, 16]["steps"] <= 1.5 * rows[2, 4]["steps"]
    assert rows[1, 16]["steps"] > rows[2, 16]["steps"]
    assert all(row["violation"] == 0.0 for row in rows.values())


def test_noise_and_rounding_are_borne():
    rows = by(rows_of("gratton2025recursive.noise"), "noise", "levels")
    assert all(row["status"] == "target_reached" and row["violation"] == 0.0 for row in rows.values())
    for kind in ("bfloat16", "gauss-0.25"):
        assert rows[kind, 3]["steps"] <= 2 * rows["exact", 3]["steps"]
        assert rows[kind, 3]["steps"] < rows[kind, 1]["steps"]


def test_networks_with_bounded_weights_are_trained():
    falls = {"residual": 2.0, "deeponet": 1.5}
    for row in rows_of("gratton2025recursive.networks"):
        assert row["loss"] < row["loss_first"] / falls[row["network"]]
        assert row["violation"] == 0.0


def test_depth_as_levels_needs_fewer_steps_and_is_consistent():
    rows = by(rows_of("gratton2023multilevel.depth"), "levels")
    assert rows[2]["loss"] < rows[1]["loss"] < math.log(10)


def test_a_network_of_copied_blocks_is_that_of_half_the_depth_for_short_steps():
    depth = importlib.import_module("experiments.gratton2023multilevel.depth")
    hierarchy = depth.residual_hierarchy("digits", (8, 4, 1e-6), 2, 0)
    y = hierarchy[1].objective.initial()
    fine = hierarchy[0].objective.value(hierarchy[1].transfer.prolong(y))
    torch.testing.assert_close(fine, hierarchy[1].objective.value(y), rtol=1e-9, atol=0.0)


# ------------------------------------------------------------------------------------------------ nonlinear Schwarz


def test_raspen_takes_as_many_krylov_iterations_as_the_rank_says():
    """The preconditioned operator is the identity plus rank 2 (N - 1)."""
    rows = rows_of("dolean2016raspen.counts")
    for row in rows:
        most = 2 * row["parts"] - 1
        if row["method"] == "raspen":
            assert most - 2 < row["krylov_per_step"] <= most
        assert row["energy"] == pytest.approx(rows[0]["energy"], rel=1e-9)
        assert row["status"] == "converged_rtol"
    found = by(rows, "method", "parts")
    assert found["raspen-2", 10]["krylov_per_step"] < found["raspen", 10]["krylov_per_step"]


def test_aspin_takes_few_steps_to_the_solution_of_newton():
    newton, *aspin = rows_of("cai2002aspin.counts")
    for row in aspin:
        assert row["steps"] <= newton["steps"]
        assert row["largest"] == pytest.approx(newton["largest"], rel=1e-6)


def test_the_lid_drives_the_vortex_of_the_literature_by_newton_and_aspin():
    newton, aspin = rows_of("cai2002aspin.cavity")
    for row in (newton, aspin):
        assert row["status"] == "converged_rtol" and row["unsolved"] == 0
        assert row["vortex"] == pytest.approx(newton["vortex"], rel=1e-6)
        assert row["vortex"] == pytest.approx(-0.1034, rel=0.1)
    assert aspin["steps"] <= newton["steps"] + 1


def test_raspen_takes_fewer_steps_than_newton_in_two_dimensions():
    rows = by(rows_of("dolean2016raspen.plane"), "problem", "method")
    for (problem, _), row in rows.items():
        assert row["status"] == "converged_rtol" and row["unsolved"] == 0
        assert row["largest"] == pytest.approx(rows[problem, "newton"]["largest"], rel=1e-6)
    assert rows["forchheimer", "raspen"]["steps"] < rows["forchheimer", "newton"]["steps"]


def test_schwarz_with_bounds_is_feasible_and_preconditions_newton():
    rows = by(rows_of("kothari2022bounds.counts"), "method", "parts")
    for row in rows.values():
        assert row["violation"] == 0.0
        assert row["energy"] == pytest.approx(rows["newton", 1]["energy"], rel=1e-6)
    assert rows["tl-nras-b + newton", 16]["steps"] < rows["nras-b", 16]["steps"]


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("key", ["cruz2023apts", "cruz2025dataparallel"])
def test_apts_descends_without_a_rate(key):
    rows = rows_of(f"{key}.curves")
    for row in rows:
        if row["method"] != "adam":
            assert row["loss"] < row["loss_first"] - 0.1
    if key == "cruz2025dataparallel":  # as published: more subdomains are slower
        assert rows[0]["loss"] < rows[1]["loss"]


@pytest.mark.parametrize("script", ["pinns", "subdomains"])
def test_spqn_descends(script):
    rows = rows_of(f"kopanicakova2024enhancing.{script}")
    problem = PhysicsInformed("klein-gordon", points=50)
    first = float(problem.objective().value(problem.initial(0)))
    for row in rows:
        assert row["loss"] < first / 2 and row["lbfgs_loss"] < first / 2
        assert row["ratio"] > 0.0


def test_a_ratio_depends_on_what_a_local_gradient_is_taken_to_cost():
    row = by(rows_of("kopanicakova2024enhancing.ratios"), "method")["aspqn"]
    layers, local = 6, 50  # those of table 1
    assert row["share"] - row["steps"] * local / layers == pytest.approx(row["device"] - row["steps"] * local)
    assert row["ratio_device"] < row["ratio_share"]


def test_overlap_and_a_coarse_step_descend():
    (row,) = rows_of("lee2024twolevel.pinns")
    assert row["loss"] < row["loss_first"] / 2


def test_an_operator_network_is_trained_with_overlap_and_a_coarse_step():
    for row in rows_of("lee2024twolevel.deeponet"):
        assert row["loss"] < row["loss_first"] / 5
        assert row["error"] < 1.0  # that of the zero function


def test_samples_of_operators_are_what_the_equations_say():
    data = samples("antiderivative", range(3))
    h = 1.0 / (data.values.shape[1] - 1)
    simpson = (data.values[:, 2:] - data.values[:, :-2]) / h
    expected = (data.functions[:, 2:] + 4 * data.functions[:, 1:-1] + data.functions[:, :-2]) / 3
    torch.testing.assert_close(simpson, expected, rtol=0.0, atol=0.02)
    data = samples("advection", range(3))
    s = data.values.view(3, 40, 40)  # by t and x
    change = (s[:, 2:, 1:-1] - s[:, :-2, 1:-1]) / (2 * h)
    residual = change + data.functions[:, None, 1:-1] * (s[:, 1:-1, 2:] - s[:, 1:-1, :-2]) / (2 * h)
    assert float(residual.abs().median()) < 0.02 * float(change.abs().median())
    torch.testing.assert_close(s[:, 0], torch.sin(math.pi * data.points[:40, 1]).expand(3, 40), rtol=0.0, atol=1e-6)


def test_windows_with_a_subspace_descend():
    (row,) = rows_of("salvado2026fbpinn.windows")
    assert row["loss"] < row["loss_first"] / 10


def test_a_correction_on_the_whole_graph_lowers_what_cut_edges_leave():
    average, correct = rows_of("ramezani2022llcg.graphs")
    assert correct["loss"] < average["loss"] < average["loss_first"]
    assert correct["synchronisations"] > average["synchronisations"]


# ------------------------------------------------------------------------------------------------ what they share


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_study_names_its_command_source_and_pictures_columns(path):
    module = importlib.import_module(f"experiments.{path.parent.name}.{path.stem}")
    assert f"python -m experiments.{path.parent.name}.{path.stem}" in module.__doc__
    assert module.STUDY.path == Path(path.parent.name) / path.stem
    assert any(word in module.STUDY.source for word in ("published", "third-party", "reconstruct", "own reference run"))
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"experiments.{path.parent.name}.{path.stem}" in text


@dataclass(frozen=True)
class Config:
    numbers: tuple[int, ...] = (1, 2, 3)
    factor: float = 2.0


def study(tmp_path, calls):
    def run(config, case, comm):
        calls.append(case["number"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"double": config.factor * case["number"]}

    script = str(tmp_path / "somebody2000something" / "table.py")
    cases = lambda config: ({"number": number} for number in config.numbers)  # noqa: E731
    return Study(script, "own reference run", Config(), Config((1,)), cases, run)


def test_a_run_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sys, "argv", ["table", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, calls).command()
    head, rows = read(tmp_path / "table.csv")
    assert rows == [{"number": "1", "double": "2"}, {"number": "2", "double": "4"}]
    assert {"command", "source", "configuration", "versions", "commit", "ranks"} == set(head)
    study(tmp_path, calls).command()
    assert calls == [1, 2, 3, 3]
    assert [row["double"] for row in read(tmp_path / "table.csv")[1]] == ["2", "4", "6"]


def test_a_run_whose_cases_are_real_numbers_goes_on(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sys, "argv", ["table", "--out", str(tmp_path)])
    of_reals = replace(study(tmp_path, calls), cases=lambda config: ({"number": x} for x in (0.0, 100.0, 1e-7)))
    with pytest.raises(KeyboardInterrupt):
        of_reals.command()
    of_reals.command()
    assert calls == [0.0, 100.0, 1e-7, 1e-7]


def test_a_file_of_another_configuration_is_refused_and_can_be_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["table", "--out", str(tmp_path), "--numbers", "1", "2"])
    study(tmp_path, []).command()
    monkeypatch.setattr(sys, "argv", ["table", "--out", str(tmp_path), "--numbers", "1", "2", "--factor", "3"])
    with pytest.raises(SystemExit, match="configuration was .* give --fresh"):
        study(tmp_path, []).command()
    sys.argv.append("--fresh")
    study(tmp_path, []).command()
    assert [row["double"] for row in read(tmp_path / "table.csv")[1]] == ["3", "6"]


def test_a_run_that_a_signal_ends_leaves_no_row(tmp_path, monkeypatch):
    def run(config, case, comm):
        problem, raised = Obstacle(7), []

        def terminate(x, state, history):
            if case["number"] == 2 and not raised:
                raised.append(signal.raise_signal(signal.SIGTERM))

        end = minimise(problem.objective(), problem.initial(), AdaGrad(), stop=Stop(4), after_step=terminate)
        return {"steps": end.record.step}

    cases = lambda config: ({"number": number} for number in config.numbers)  # noqa: E731
    monkeypatch.setattr(sys, "argv", ["table", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        Study(str(tmp_path / "key" / "table.py"), "own reference run", Config(), Config(), cases, run).command()
    assert ended.value.code == 143
    assert read(tmp_path / "table.csv")[1] == [{"number": "1", "steps": "4"}]


def test_pictures_draw_medians_and_name_numbers_by_their_column(tmp_path):
    rows = [{"n": n, "steps": y, "parts": p} for n, y, p in (("1", "2", "4"), ("1", "4", "4"), ("2", "5", "4"))]
    picture = Picture("n", "steps", ("parts",))
    assert [list(values) for values in points(rows, picture)] == [[1.0, 2.0], [3.0, 5.0]]
    assert list(groups(rows, ("parts",))) == ["parts 4"]
    draw(picture, rows, tmp_path / "one.png", "own reference run")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_circle_what_was_not_reached_and_leave_out_what_most_runs_have_missed():
    axes = Figure().subplots()
    picture = Picture("n", "work", ("parts",))
    ends = [("1", "3", "target_reached"), ("1", "5", "converged"), ("2", "8", "max_steps"), ("3", "nan", "stalled")]
    rows = [{"n": n, "work": work, "parts": "4", "status": status} for n, work, status in ends]
    assert [list(values) for values in points(rows, picture)] == [[1.0, 2.0], [4.0, 8.0]]
    assert curve(axes, rows, picture, style_of("parts 4", ["parts 4"]), "parts 4")
    through, _, circles = (line.get_xydata().tolist() for line in axes.lines)
    assert through[0] == [1.0, 4.0] and math.isnan(through[1][1]) and circles == [[2.0, 8.0]]
    assert not curve(axes, rows[:2], picture, style_of("parts 4", ["parts 4"]), "parts 4")


def test_a_solver_has_one_colour_and_its_variants_differ():
    names = ["lbfgs", "torch lbfgs", "aspqn", "mspqn, layers", "aspqn, coarse", "torchbraid", "adam, clamp (torch)"]
    styles = {name: style_of(name, names) for name in names}
    assert styles["lbfgs"]["color"] == styles["torch lbfgs"]["color"] != styles["torchbraid"]["color"]
    assert styles["adam, clamp (torch)"]["color"] == style_of("adam", ["adam"])["color"]
    dashed = [name for name, style in styles.items() if style["linestyle"] == "--"]
    assert dashed == ["torch lbfgs", "torchbraid", "adam, clamp (torch)"]
    same = [tuple(sorted(styles[name].items())) for name in ("aspqn", "mspqn, layers", "aspqn, coarse")]
    assert len({dict(style)["color"] for style in same}) == 1 and len(set(same)) == 3
    others = ["ras, levels 1", "wasm, levels 1"]
    assert len({style_of(name, others)["color"] for name in others}) == 2
