"""The README's examples run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mldd.command.cli import main
from mldd.problems.data import DataError, load_series

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", README.read_text(), re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh" and not text.startswith("#!")
    for line in text.splitlines()
    if "mldd" in line
]
BATCH_SCRIPTS = [text for kind, text in BLOCKS if text.startswith("#!")]


def test_the_readme_has_examples() -> None:
    assert len(PYTHON) == 2
    assert len(COMMANDS) >= 6
    assert len(BATCH_SCRIPTS) == 1


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["converged_atol", "converged_atol"]
    assert len([line for line in PYTHON[0].splitlines() if line]) <= 12


def test_the_example_of_a_network_of_ones_own_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    exec(compile(PYTHON[1], "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert out.startswith("max_steps True (90, 3) {") and "train_accuracy" in out
    assert len([line for line in PYTHON[1].splitlines() if line]) <= 15


def is_there(name: str) -> bool:
    try:
        load_series(name)
    except DataError:
        return False
    return True


def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weather = is_there("era5-uk")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "mldd" and ("era5-uk" not in command or weather):
            assert main(words[1:]) == 0, command
    assert (tmp_path / "runs/obstacle/result.json").is_file()
    assert (tmp_path / "runs/sbm/compare.png").is_file()
    assert (tmp_path / "runs/shards/manifest.json").is_file()
    assert not weather or (tmp_path / "runs/era5/forecast.png").is_file()


@pytest.mark.mpi
def test_the_parallel_commands_run_with_a_graph_at_hand(tmp_path: Path) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    found = str(mpiexec) if mpiexec.is_file() else shutil.which("mpiexec")
    pytest.importorskip("mpi4py")
    if found is None:
        pytest.skip("mpiexec is missing")
    training, sharded = [c for c in COMMANDS if c.startswith("mpiexec")]
    (writing,) = [c for c in COMMANDS if "--write" in c]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    mldd = str(Path(sys.executable).with_name("mldd"))
    # Cora needs a download; the command is the same for a graph that is made on the spot
    for command in (training.replace("cora", "sbm") + " --steps 3", writing, sharded):
        words = [{"mldd": mldd, "mpiexec": found}.get(word, word) for word in shlex.split(command)]
        subprocess.run(words, cwd=tmp_path, env=environment, check=True, timeout=120)
    assert (tmp_path / "runs/sbm/result.json").is_file()


def test_the_batch_script_is_sound(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(BATCH_SCRIPTS[0])
    subprocess.run(["bash", "-n", str(script)], check=True)
    (command,) = [line for line in BATCH_SCRIPTS[0].splitlines() if line.startswith("srun")]
    from mldd.command.options import parse

    options = parse(shlex.split(command)[2:])
    assert options.solver == "dd-adagrad"
