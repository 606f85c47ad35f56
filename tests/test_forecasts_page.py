"""The page on forecasts runs as it stands: its files are saved under their names, and its commands are run."""

import csv
import re
import runpy
import shlex
from pathlib import Path

import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr")
PAGE = (Path(__file__).parents[1] / "paper" / "manual" / "forecasts.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"Save this as\s+`(\w+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_page_runs_and_its_last_number_is_that_of_verify(run, tmp_path, monkeypatch, capsys):
    assert list(FILES) == ["weather.py", "read.py"] and len(COMMANDS) == 8
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    said = {}
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
            said[command] = capsys.readouterr().out
            continue
        code, out, error = run("", *words)
        assert (program, code) == ("mldd", 0), f"{command}: {error}"
        said[command] = out
    with (tmp_path / "verified" / "verification.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variable"] for row in rows] == [name for name in ("t2m", "u10", "v10", "u10,v10") for _ in range(4)]
    assert float(said["python read.py"]) == pytest.approx(float(rows[0]["rmse"]), rel=1e-6)
    with xarray.open_zarr(tmp_path / "ensemble.zarr", decode_timedelta=False) as read:
        assert read.sizes["member"] == 2 and read.u10.attrs["standard_name"] == "eastward_wind"
    with xarray.open_dataset(tmp_path / "perturbed.nc", decode_timedelta=False) as read:
        assert read.sizes["member"] == 3
