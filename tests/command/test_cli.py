"""The command line: what it reads, what it refuses, what it writes, and how it ends."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mldd.checkpoints import previous
from mldd.command import cli, names
from mldd.command.report import _metric_lines
from mldd.command.values import convert
from mldd.loop import read_csv
from mldd.loop.monitor import FIELDS
from tests.helpers import MLDD, result, user_arrays

KEYS = """problem solver options identity seed ranks parts overlap levels status notes rollbacks steps loss measure
metrics gradient_evaluations work_units work_total synchronisations scalar_synchronisations bytes_exchanged halo_rows
halo_bytes exchanges seconds setup_seconds setup_work bounds_violation versions""".split()


DRAWS = {"test_train_writes_what_the_contract_says", "test_compare"}


@pytest.fixture(autouse=True)
def figures(request):
    """Draw only where the figure is what is tested."""
    if request.node.originalname not in DRAWS:
        request.getfixturevalue("without_figures")


# train


def test_train_writes_what_the_contract_says(run, tmp_path):
    code, out, err = run("train obstacle:n=15 --solver adagrad --steps 30 --seed 3 --out", tmp_path / "a" / "b")
    assert (code, err) == (0, "")
    content = result(tmp_path / "a" / "b")
    assert list(content) == KEYS
    assert content["problem"] == "obstacle:n=15" and content["solver"] == "adagrad" and content["seed"] == 3
    assert (content["status"], content["steps"], content["ranks"], content["parts"]) == ("max_steps", 30, 1, 1)
    assert content["bounds_violation"] == 0.0 and content["options"]["target"] is None
    history = read_csv(tmp_path / "a" / "b" / "history.csv")
    assert len(history.records) == 31
    assert history.records[-1].measure == content["measure"] and history.records[-1].value == content["loss"]
    assert (tmp_path / "a" / "b" / "history.csv").read_text().splitlines()[0] == ",".join(FIELDS)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "convergence.png",
        "history.csv",
        "result.json",
        "solution.npz",
    ]
    for word in ("max_steps: all steps used", "work units", "infinity norm", "history.csv", "loss"):
        assert word in out


def test_statuses_and_norm(run, tmp_path):
    def ends(options):
        assert run(f"train obstacle:n=15 --solver adagrad --quiet {options} --overwrite --out", tmp_path)[:2] == (0, "")
        return result(tmp_path)["status"], result(tmp_path)["measure"]

    status, infinity = ends("--atol 1e-4")
    assert status == "converged_atol" and infinity <= 1e-4
    assert ends("--rtol 1e-2")[0] == "converged_rtol"
    assert ends("--target -0.5")[0] == "target_reached"
    assert ends("--max-seconds 0")[0] == "max_seconds"
    assert ends("--steps 0 --norm 2")[1] == pytest.approx(15 * ends("--steps 0")[1])


def test_dtype_reaches_the_problem(run, tmp_path):
    assert run("train obstacle:n=7 --solver adagrad --steps 3 --dtype float32 --out", tmp_path)[0] == 0
    assert result(tmp_path)["options"]["dtype"] == "float32"
    assert result(tmp_path)["loss"] != pytest.approx(_loss(run, "--dtype float64", tmp_path), rel=1e-12)


def _loss(run, options, folder):
    run(f"train obstacle:n=7 --solver adagrad --steps 3 {options} --overwrite --out", folder)
    return result(folder)["loss"]


def test_levels_reach_the_solver(run, tmp_path):
    one = "train obstacle:n=31 --atol 1e-5 --quiet --solver"
    assert run(f"{one} ml-adagrad --levels 4 --out", tmp_path / "4")[0] == 0
    assert run(f"{one} ml-adagrad --out", tmp_path / "default")[0] == 0
    assert run(f"{one} adagrad --out", tmp_path / "1")[0] == 0
    assert [result(tmp_path / name)["levels"] for name in ("4", "default", "1")] == [4, 3, 1]
    assert max(read_csv(tmp_path / "4" / "history.csv").column("level")) in (1, 2, 3)
    assert result(tmp_path / "4")["steps"] < result(tmp_path / "1")["steps"]


def test_divergence_is_a_failure(run, tmp_path):
    code, out, err = run("train quadratic:n=7 --solver sgd:lr=1e200 --out", tmp_path)
    assert code == 1 and err.count("\n") == 1 and err.startswith("mldd: error: diverged: ")
    content = result(tmp_path)
    assert content["status"] == "diverged" and content["measure"] is not None
    assert all(value is None or abs(value) < 1e250 for value in (content["loss"], content["measure"]))


def test_a_failure_during_the_run_keeps_the_history_and_no_old_result(run, tmp_path, monkeypatch):
    from mldd.solvers import AdaGrad

    assert run("train obstacle:n=7 --solver adagrad --steps 2 --out", tmp_path)[0] == 0
    step = AdaGrad.step

    def broken(self, objective, x, state):
        if state.step == 5:
            raise ValueError("the\nmachine broke")
        return step(self, objective, x, state)

    monkeypatch.setattr(AdaGrad, "step", broken)
    code, out, err = run("train obstacle:n=7 --solver adagrad --overwrite --out", tmp_path)
    assert (code, out, err) == (1, "", "mldd: error: the machine broke\n")
    assert read_csv(tmp_path / "history.csv").column("step") == [0, 1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]
    assert "Traceback" in run("train obstacle:n=7 --solver adagrad --debug")[2]


def test_infeasible_start_is_said(run, monkeypatch):
    from mldd.problems.grids import Obstacle

    initial = Obstacle.initial
    monkeypatch.setattr(Obstacle, "initial", lambda self, seed=0: initial(self, seed) - 1.0)
    assert "has been projected" in run("train obstacle:n=7 --solver adagrad --steps 2")[1]


# what is refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a command is needed: list, info, train, compare, "),
        ("tain", "invalid choice: 'tain'"),
        ("train", "the following arguments are required: PROBLEM, --solver"),
        ("train obstacel --solver adagrad", "unknown problem 'obstacel' (did you mean obstacle?); there are "),
        ("train obstacle --solver adagard", "unknown solver 'adagard' (did you mean adagrad?); there are adagrad"),
        ("train obstacle:m=3 --solver adagrad", "obstacle has no key 'm'; its keys are n "),
        ("train obstacle:15 --solver adagrad", "obstacle takes key=value, got '15'; its keys are n "),
        ("train obstacle --solver adagrad:varsgima=1", "no key 'varsgima' (did you mean varsigma?); its keys are"),
        ("train obstacle:n=3.5 --solver adagrad", "`obstacle:n` must be a whole number, got '3.5'"),
        ("train obstacle:n=0 --solver adagrad", "`n` must be >= 1"),
        ("train obstacle --solver adagrad:varsigma=2", "`varsigma` must be in (0, 1], got 2.0"),
        (
            "train obstacle --solver adagrad:curvature=some",
            "must be one of auto none exact diagonal differences lbfgs, got 'some'",
        ),
        ("train obstacle --solver adagrad --parts 4", "--parts is of no use to solver adagrad; leave it out or"),
        ("train obstacle --solver adagrad --combine ras", "--combine is of no use to solver adagrad"),
        (
            "train poisson1d --solver mspqn --parts 3 --combine ras",
            "`combine` is for additive sweeps, a multiplicative",
        ),
        ("train obstacle --solver adagrad --data /tmp", "--data is of no use to problem obstacle"),
        ("train obstacle --solver adagrad --step 5", "unrecognized arguments: --step 5 (did you mean --steps?)"),
        ("train obstacle --solver adagrad -steps 5", "-steps with one dash goes to PETSc; did you mean --steps?"),
        ("train obstacle --solver adagrad --steps -3", "argument --steps: must be a whole number >= 0, got '-3'"),
        ("train obstacle --solver adagrad --atol nan", "argument --atol: must be a number, got 'nan'"),
        ("train obstacle --solver adagrad --atol -1", "`atol` must be >= 0, got -1.0"),
        ("train obstacle --solver adagrad --resume nofile.pt", "the checkpoint nofile.pt must be a file, got none"),
        ("train nofile.npz --solver adam", "the problem nofile.npz must be a file, got none"),
        ("train obstacle:n=7 --solver lbfgs", "lbfgs needs an objective without bounds"),
        ("compare obstacle --solvers adagrad,adagrad", "--solvers must differ from each other"),
        ("compare obstacle:n=7 --solvers adam:lr=0.01,adam:lr=1e-2", "got adam:lr=0.01 and adam:lr=1e-2; leave one"),
        ("compare obstacle --solvers adagrad --seeds 0,0", "argument --seeds: must differ"),
        ("compare obstacle --solvers adagrad,foo", "unknown solver 'foo'"),
        ("plot nowhere", "nowhere must hold results of mldd, got no history.csv"),
        ("list -tao_view", "list takes no PETSc options, got -tao_view"),
    ],
)
def test_bad_arguments(run, line, message):
    code, out, err = run(line)
    assert (code, out) == (2, "") and err.startswith("mldd: error: ") and err.count("\n") == 1
    assert message in err


def test_unwritable_folder_is_found_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run("train obstacle --solver adagrad --out", tmp_path / "file" / "x")
    assert code == 2 and "must be writable" in err and err.count("\n") == 1
    code, out, err = run("train obstacle --solver adagrad --checkpoint", tmp_path / "file" / "c.pt")
    assert code == 2 and "must be writable" in err


def test_missing_dependency_is_one_line(run, monkeypatch):
    monkeypatch.setitem(names.SOLVERS, "broken", "mldd.solvers.adagrad:AdaGrad")
    monkeypatch.setattr(
        "mldd.algebra.outside.import_module",
        _raise(ImportError("petsc4py cannot be imported; install it", name="petsc4py")),
    )
    code, out, err = run("train obstacle --solver broken")
    assert code == 2 and err == "mldd: error: petsc4py cannot be imported; install it\n"


def _raise(error):
    def function(*args):
        raise error

    return function


# checkpoints


@pytest.mark.parametrize(
    ("problem", "solver"),
    [
        ("obstacle:n=15", "adagrad"),
        ("obstacle:n=15", "ml-adagrad --levels 3"),
        ("obstacle:n=15", "dd-adagrad --levels 2"),
        ("obstacle:n=15", "adam:lr=0.05"),
        ("graph", "adagrad:curvature=lbfgs"),
        ("graph", "ml-adagrad --levels 2"),
        ("graph", "dd-adagrad --levels 2"),
        ("graph", "adam"),
        ("graph:dropout=0", "lbfgs"),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(run, tmp_path, problem, solver):
    np.savez(tmp_path / "graph.npz", **user_arrays())  # its network has dropout
    line = f"train {problem.replace('graph', str(tmp_path / 'graph.npz'))} --quiet --evaluate-every 1 --solver {solver}"
    file = tmp_path / "c.pt"
    assert run(f"{line} --steps 14 --out", tmp_path / "whole")[0] == 0
    assert run(f"{line} --steps 5 --checkpoint", file)[0] == 0
    assert run(f"{line} --steps 14 --out {tmp_path / 'rest'} --resume", file)[0] == 0
    whole, rest = (read_csv(tmp_path / name / "history.csv") for name in ("whole", "rest"))
    for column in ("step", "level", "measure", "value", "accepted", "rejected"):
        assert rest.column(column) == whole.column(column), column
    assert result(tmp_path / "rest")["loss"] == result(tmp_path / "whole")["loss"]


def test_checkpoint_of_another_run(run, tmp_path):
    file = tmp_path / "c.pt"
    line = "train {} --quiet --steps 2 --solver {} --resume"
    assert run("train obstacle:n=7 --solver adagrad --quiet --steps 1 --checkpoint", file)[0] == 0
    for problem, solver, word in (
        ("obstacle:n=15", "adagrad", "problem"),
        ("membrane:n=7", "adagrad", "problem"),
        ("obstacle:n=7", "adam", "solver"),
        ("obstacle:n=7", "adagrad:kappa=2", "solver"),
        ("obstacle:n=7", "adagrad --norm 2", "norm"),
    ):
        code, out, err = run(line.format(problem, solver), file)
        assert code == 2 and f"with {word} " in err and err.count("\n") == 1
    assert run(line.format("obstacle:n=7,lower=-0.25", "adagrad:kappa=1"), file)[0] == 0, "the same in other words"
    fresh = "train obstacle:n=7 --solver adam --quiet --steps 1 --checkpoint"
    code, out, err = run(fresh, file)
    assert code == 2 and "must be free or of the same run, got one of another run (solver" in err
    assert run(f"{fresh} {file} --overwrite")[0] == 0
    assert run(f"{fresh} {file}")[0] == 0, "the same run once more"
    previous(file).unlink()
    file.write_bytes(file.read_bytes()[:300])
    code, out, err = run(line.format("obstacle:n=7", "adagrad"), file)
    assert code == 2 and "must be a whole checkpoint of mldd" in err and err.count("\n") == 1


@pytest.mark.parametrize(("every", "steps"), [("2steps", [0, 2, 4, 5]), ("auto", [0, 5]), ("1h", [0, 5])])
def test_checkpoints_come_at_the_start_at_intervals_and_at_the_end(run, tmp_path, monkeypatch, every, steps):
    from mldd.command import run as runs

    saved = []
    monkeypatch.setattr(runs.checkpoints, "save", lambda path, *, state, **more: saved.append(state.step))
    line = f"train obstacle:n=7 --solver adagrad --steps 5 --checkpoint-every {every} --checkpoint"
    assert run(line, tmp_path / "c.pt")[0] == 0
    assert saved == steps


# compare, list, info


def test_compare(run, tmp_path, monkeypatch):
    from mldd.solvers import Sgd

    monkeypatch.setattr(Sgd, "step", _raise(RuntimeError("no\nluck")))
    monkeypatch.setattr("mldd.figures.curves.convergence", lambda history, path, title: path.touch())
    named = "adagrad,ml-adagrad:coarse.cap=9,coarse.steps=7,sgd"
    line = f"compare obstacle:n=15 --solvers {named} --levels 3 --seeds 0,1 --steps 9"
    code, out, err = run(line + " --quiet --out", tmp_path)
    assert code == 1 and err == ""
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "solver" and "work units" in lines[0] and "seconds" in lines[0]
    assert [row.split()[0] for row in lines[1:4]] == [
        "adagrad",
        "ml-adagrad:coarse.cap=9,coarse.steps=7",
        "sgd",
    ]
    assert "failed: RuntimeError: no luck" in lines[3]
    assert result(tmp_path / "ml-adagrad_coarse.cap=9_coarse.steps=7" / "1")["levels"] == 3
    rows = (tmp_path / "compare.csv").read_text().splitlines()
    assert len(rows) == 7 and rows[0].startswith("solver,seed,status,steps,loss,measure")
    files = [tmp_path / name for name in ("compare.csv", "quartiles.csv", "compare.pdf", "compare.png")]
    assert out.splitlines()[-1].split() == ["written", *map(str, files)]
    assert all(file.is_file() for file in files)
    starts = {read_csv(path).records[0].measure for path in tmp_path.rglob("history.csv")}
    assert len(starts) == 1, "all from the same start"


def test_list_names_everything_with_a_sentence(run):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    words = set(out.replace(":TYPE", "").split())
    assert set(names.PROBLEMS) | set(names.SOLVERS) <= words
    assert len(out.splitlines()) <= 90 and max(map(len, out.splitlines())) <= 120
    assert "Classify the nodes of a graph by a graph network" in out


def test_a_summary_shows_the_first_metrics():
    shown = _metric_lines({f"test_rmse_{k}": 0.25 for k in range(25)})
    assert shown[0] == ("test rmse 0", "0.25") and shown[-1] == ("metrics", "5 more in result.json")
    assert len(shown) == 21 and len(_metric_lines({"loss": 1.0})) == 1


def test_list_of_a_name_explains_its_keys(run):
    code, out, err = run("list obstacle")
    assert (code, err) == (0, "")
    assert "  n : whole number, default 63\n      Interior nodes per side." in out
    assert "example: mldd train obstacle:n=63 --solver adam" in out
    assert "example: mldd train weather:path=VALUE --solver adam" in run("list weather")[1]
    out = run("list cora")[1]
    assert "  network.hidden : whole number, default 16\n" in out
    assert "  name :" not in out, "what the name sets is no key"
    out = run("list dd-adagrad")[1]
    assert "  combine : asm | ras | wasm | none, default None" in out and "hierarchy :" not in out
    assert "\n  options that reach it: --parts --overlap --levels --combine --local-steps\n" in out
    assert run("list obstacel")[0] == 2


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"mldd", "python", "torch", "numpy", "PETSc", "petsc4py", "MPI", "mpi4py", "devices", "threads"} <= set(rows)
    assert rows["python"] == sys.version.split()[0] and rows["devices"].startswith("cpu")


def test_help_and_errors_do_not_wait_for_torch():
    program = "import sys; from mldd.command.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for line, code in (
        ("train foo --solver adam", 2),
        ("train cora --solver foo", 2),
        ("train --help", 0),
        ("list", 0),
    ):
        call = [sys.executable, "-c", program, *line.split()]
        last = subprocess.run(call, capture_output=True, text=True).stdout.splitlines()[-1]
        assert last == f"{code} False"


# specs


def test_petsc_options_are_taken_out():
    options = cli.parse("train obstacle --solver x -a_b 1 -c_d -1.5 --steps 3 -e_f --quiet".split())
    assert options.petsc == ["-a_b", "1", "-c_d", "-1.5", "-e_f"]
    assert (options.problem, options.steps, options.quiet) == ("obstacle", 3, True)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("yes", bool, True),
        ("False", bool, False),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("64:32", tuple[int, ...], (64, 32)),
        ("a", str, "a"),
    ],
)
def test_convert(text, hint, value):
    assert convert(text, hint, "x") == value


def test_user_files_are_problems(tmp_path):
    for name in ("a,b=c.npz", "d:e.pt"):
        (tmp_path / name).write_text("")
        spec = names.problem_spec(f"{tmp_path / name}:hidden=8")
        assert spec.fixed == {"name": str(tmp_path / name)} and spec.keys == {"network.hidden": 8}


# Ctrl-C


def wait_for_rows(path, process, rows=5):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text().count("\n") > rows:
            return
        time.sleep(0.05)
    pytest.fail(f"no history: {process.communicate(timeout=5)}")


def test_ctrl_c_writes_history_and_checkpoint(tmp_path, run):
    line = (
        f"train obstacle:n=31 --solver adam:lr=1e-9 --steps 10000000 --out {tmp_path} --checkpoint {tmp_path / 'c.pt'}"
    )
    words = [sys.executable, "-c", MLDD, *line.split()]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for_rows(tmp_path / "history.csv", process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "" and "interrupted: stopped by the user" in out
    content, history = result(tmp_path), read_csv(tmp_path / "history.csv")
    assert content["status"] == "interrupted" and content["steps"] == history.records[-1].step
    steps = content["steps"] + 3
    line = f"train obstacle:n=31 --solver adam:lr=1e-9 --steps {steps} --quiet --out {tmp_path / 'more'} --resume"
    assert run(line, tmp_path / "c.pt")[0] == 0
    assert read_csv(tmp_path / "more" / "history.csv").column("step") == list(range(steps + 1))


# set-up and prices


def test_set_up_is_clocked_and_every_solver_is_charged_its_own(run, tmp_path):
    line = "compare obstacle:n=31 --solvers adagrad,ml-adagrad,dd-adagrad --parts 4 --levels 3 --steps 2 --quiet --out"
    assert run(line, tmp_path)[0] == 0
    plain, levels, both = (result(tmp_path / name / "0") for name in ("adagrad", "ml-adagrad", "dd-adagrad"))
    assert (plain["setup_seconds"], plain["setup_work"]) == (0.0, 0.0)
    for content in (levels, both):
        assert content["setup_seconds"] > 0 and content["setup_work"] > 0
    history = read_csv(tmp_path / "dd-adagrad" / "0" / "history.csv")
    assert set(history.column("setup_work")) == {both["setup_work"]}


def test_two_solvers_with_the_same_subdomains_have_the_same_set_up(run, tmp_path):
    line = "compare obstacle:n=15 --solvers dd-adagrad,schwarz --parts 4 --overlap 2 --levels 1 --steps 2 --quiet --out"
    assert run(line, tmp_path)[0] == 0
    first, second = (result(tmp_path / name / "0") for name in ("dd-adagrad", "schwarz"))
    assert first["setup_seconds"] == second["setup_seconds"] > 0


def test_measured_prices_change_the_books_and_nothing_else(run, tmp_path):
    line = "train sbm:dropout=0.0 --solver dd-adagrad --parts 4 --levels 2 --steps 3 --quiet --prices"
    assert run(f"{line} estimated --out", tmp_path / "a")[0] == 0
    assert run(f"{line} measured --out", tmp_path / "b")[0] == 0
    estimated, measured = result(tmp_path / "a"), result(tmp_path / "b")
    assert measured["options"]["prices"] == "measured"
    for key in ("loss", "gradient_evaluations", "synchronisations"):
        assert measured[key] == estimated[key]
    assert measured["work_units"] != estimated["work_units"] and measured["work_units"] > 0
