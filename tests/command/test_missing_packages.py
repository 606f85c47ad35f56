"""What runs with the required packages alone, and what says of a missing one how to get it."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mldd.algebra import EXTRAS
from tests.helpers import WITHOUT, user_arrays

CONFIGURATION = configparser.ConfigParser()
CONFIGURATION.read(Path(__file__).parents[2] / "setup.cfg")
SHORT = "--steps 2 --quiet"
DISTRIBUTIONS = {"torch_geometric": "torch-geometric", "mlflow": "mlflow-skinny"}  # where pip has another name
# Every built-in problem that needs no file, and every solver that needs no PETSc.
PROBLEMS = """quadratic:n=7 obstacle:n=7 membrane:n=7 minimal-surface:n=7 bratu:n=7 ignition:n=7 morebv:n=7
forchheimer:n=7 poisson1d burgers:points=50 digits digits-graph sbm sbm-own synthetic"""
SOLVERS = """
quadratic:n=15 --solver adagrad
obstacle:n=15 --solver ml-adagrad --levels 2
sbm --solver dd-adagrad --parts 3 --levels 2
quadratic:n=15 --solver schwarz --parts 2
sbm --solver ml-lbfgs --levels 2
quadratic:n=15 --solver aspqn --parts 2
poisson1d --solver mspqn --parts 2
quadratic:n=15 --solver apts --parts 2
quadratic:n=7 --solver mofftr:smoother=adagrad(rate=0.001)
digits:subdomains=data --solver localsgd --parts 2
quadratic:n=7 --solver lbfgs
digits:subdomains=data --solver diloco --parts 2
quadratic:n=7 --solver newton
quadratic:n=7 --solver trust-region
"""
NETWORK = "import torch_geometric\n\n\nclass Net(torch_geometric.nn.GCN):\n    pass\n"
SEVERAL = """
import contextlib, io, json, sys
from mldd.command import main

for line in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def several(*lines, hidden, **environment):
    """Run command lines in one process without some packages; give exit status, output and errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + SEVERAL, *lines],
        capture_output=True,
        text=True,
        env={**os.environ, "HIDDEN": " ".join(hidden), "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.splitlines()]


def refused(ends, messages):
    """Each command is refused in one line that has its message."""
    for (line, message), (code, out, err) in zip(messages.items(), ends, strict=True):
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, (line, err)


def required(section, key):
    return [line for line in CONFIGURATION[section][key].split("\n") if line]


def test_every_module_is_brought_by_the_extra_that_is_named():
    for module, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(module, module) in required("options.extras_require", extra), module
    brought = {name for extra in {*EXTRAS.values()} for name in required("options.extras_require", extra)}
    assert brought == {DISTRIBUTIONS.get(module, module) for module in EXTRAS} | {"petsc"}
    assert not brought & {*required("options", "install_requires")}


def test_required_packages_run_every_problem_and_solver():
    lines = [f"{problem} --solver adam" for problem in PROBLEMS.split()] + SOLVERS.strip().splitlines()
    ends = several(*(f"train {line} {SHORT}" for line in lines), hidden=EXTRAS)
    assert [(line, end) for line, end in zip(lines, ends, strict=True) if end != [0, "", ""]] == []


def test_other_commands_run_with_the_required_packages(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    home = tmp_path / "run"
    lines = [
        f"train {tmp_path}/own.npz --solver adam {SHORT} --out {home}",
        f"predict {home} {tmp_path}/own.npz --out {tmp_path}/classes.csv",
        f"plot {home} --out {tmp_path}/again.png",
        "partition sbm --parts 3 --methods metis,spectral",
        f"compare obstacle:n=7 --solvers adagrad,tao:blmvm {SHORT}",
        "list",
        "info",
    ]
    *ends, compared, listed, info = several(*lines, hidden=EXTRAS)
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 4 and (tmp_path / "again.png").is_file()
    assert compared[::2] == [1, ""] and "max_steps" in compared[1] and "failed: PETSc is needed here" in compared[1]
    assert listed[0] == 0 and "(needs mldd[petsc])" in listed[1]
    assert info[0] == 0 and "single-process methods run without" in info[1]


def test_a_missing_package_is_one_line_with_the_extra(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "s.nc").write_bytes(b"CDF\x01" + bytes(80))
    (tmp_path / "s.grib").write_bytes(b"GRIB")
    messages = {
        "train obstacle --solver tao:blmvm": "petsc4py cannot be imported (No module named 'petsc4py'); "
        'pip install "mldd[petsc]"',
        "train obstacle --solver adagrad -tao_view": 'pip install "mldd[petsc]"',
        "train quadratic --solver raspen --parts 2": 'pip install "mldd[petsc]"',
        "partition sbm --parts 2 --methods petsc": 'pip install "mldd[petsc]"',
        "partition sbm --parts 2 --methods kahypar": 'pip install "mldd[partition]"',
        "partition sbm --parts 2 --methods kahip": 'pip install "mldd[partition]"',
        f"train {tmp_path}/own.npz:model={tmp_path}/net.py:Net --solver adam": 'pip install "mldd[graphs]"',
        f"train {tmp_path}/s.nc --solver adam": 'pip install "mldd[fields]"',
        f"train {tmp_path}/s.grib --solver adam": 'pip install "mldd[fields]"',
        f"train sbm --solver adam --out {tmp_path}/x --log wandb": 'pip install "mldd[wandb]"',
    }
    refused(several(*messages, hidden=EXTRAS), messages)


def test_readers_of_fields_name_their_extra(tmp_path):
    pytest.importorskip("xarray", reason="needs xarray")
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (tmp_path / "s.nc4").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(80))
    messages = {f"train {tmp_path}/s.{kind} --solver adam": 'pip install "mldd[fields]"' for kind in ("zarr", "nc4")}
    ends = several(*messages, hidden=[name for name in EXTRAS if name != "xarray"] + ["h5py", "netCDF4"])
    refused(ends, messages)


def test_a_missing_launcher_library_is_one_line_with_the_extra():
    [end] = several(f"train obstacle:n=7 --solver adagrad {SHORT}", hidden=EXTRAS, PMI_RANK="0", PMI_SIZE="2")
    assert end[0] == 2 and 'pip install "mldd[mpi]", or start a single process' in end[2] and end[2].count("\n") == 1


def test_what_every_run_needs_is_named_too():
    [[code, _, err]] = several(f"train obstacle:n=3 --solver adagrad {SHORT}", hidden=["torch"])
    assert (code, err) == (2, "mldd: error: No module named 'torch'; pip install torch\n")
