"""Anemoi itself, where it is installed (make anemoi): its trainings by our solvers, and the commands of the page."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mldd.loop import read_csv

pytest.importorskip("anemoi.training", reason="needs Anemoi: make anemoi")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "paper/manual/anemoi.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the checkout, but for runs; the commands of the page have been run there in their order."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("experiments", ".venv-anemoi"):
        (folder / name).symlink_to(ROOT / name)
    script = "set -e\n" + "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    libraries = {"LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib")}
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env={**os.environ, **libraries}, stdout=log, stderr=log, check=False
        )
    said = (folder / "log").read_text(errors="replace")
    assert done.returncode == 0, said[-3000:]
    return folder


def values_of(path):
    return [record.value for record in read_csv(path).records][:-1]


def test_the_commands_of_the_page_train_and_draw(folder):
    for name in ("lbfgs", "aspqn"):
        values = values_of(folder / "runs/anemoi" / name / "history.csv")
        assert len(values) == 6 and np.isfinite(values).all()
    assert (folder / "runs/anemoi/both.png").stat().st_size > 10_000
    log = (folder / "log").read_text(errors="replace")
    assert "subdomains (parameters): encoder" in log and "LBFGS has no rate" in log
    assert re.search(r"mldd: (\d+) of \1 parameters start from", log)
    assert "rows that ranks read of each other" in log and "test rmse" in log


def test_a_renumbering_changes_nothing(folder):
    """The same training with AdamW before and after; last digits of sums over nodes differ."""
    from experiments.anemoi.runs import train

    data, reordered = folder / "runs/anemoi/era5uk.zarr", folder / "runs/anemoi/reordered"
    train("AdamW", folder / "before", data)
    more = ["graph=existing", f"system.input.graph={reordered / 'uk.pt'}"]
    train("AdamW", folder / "after", reordered / "era5uk.zarr", more=more)
    before, after = (values_of(folder / name / "records/history.csv") for name in ("before", "after"))
    assert len(before) == 6
    np.testing.assert_allclose(before, after, rtol=1e-5)


def test_a_model_that_is_cut_takes_the_same_steps(folder):
    from experiments.anemoi.runs import train

    whole = values_of(folder / "runs/anemoi/lbfgs/history.csv")
    train("L-BFGS", folder / "cut", folder / "runs/anemoi/era5uk.zarr", "model cut, mpiexec")
    cut = values_of(folder / "cut/records/history.csv")
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)
    assert cut == pytest.approx(whole, rel=0.05)  # rounding grows from step to step


def test_both_worlds_see_the_same_numbers(folder):
    """The series as NetCDF and as Anemoi's data set: values, inputs of a network, and what Anemoi itself reads."""
    from anemoi.datasets import open_dataset

    from mldd.problems.data import load_series
    from mldd.problems.forecasts import Forecasting, Plan

    data = folder / "runs/anemoi/era5uk.zarr"
    plain, theirs = load_series(data.with_suffix(".nc")), load_series(data, variables=("2t",))
    np.testing.assert_array_equal(plain.time, theirs.time)
    np.testing.assert_allclose(theirs.values, plain.values, rtol=2.0**-23)
    read = open_dataset(str(data))
    column = list(read.variables).index("2t")
    for t in (0, 17, 239):
        np.testing.assert_array_equal(read[t][column, 0], theirs.values[t, :, 0].astype(np.float32))
    alike = replace(theirs, supplement=plain.supplement)  # normalised by the training part, not the file's statistics
    inputs = [Forecasting(series, Plan(stride=5)).local_graphs.features for series in (plain, alike)]
    np.testing.assert_allclose(*inputs, atol=1e-4)  # increments are in units of 0.5 K, of values near 280 in float32
    assert np.abs(inputs[0]).max() > 3
