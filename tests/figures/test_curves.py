"""Figures: they are written whole, for every kind of history; the statistics behind them."""

import math

import numpy as np
import pytest

from mldd.figures import comparison
from mldd.figures.curves import band, convergence
from mldd.loop import Cost, History, Record


def history(steps=20, rate=0.1, floor=0.1, work=1.0, syncs=0, values=True):
    def record(k):
        value = floor + math.exp(-rate * k) if values else math.nan
        cost = Cost(k + 1, 1 + work * k, 1 + work * k, syncs * k, seconds=0.01 * k)
        return Record(k, 0, math.exp(-rate * k), value, 0, 0, cost)

    return History([record(k) for k in range(steps)])


def size(path):
    """Width and height of a PNG, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize(
    "shown",
    [
        history(),
        history(syncs=3, floor=-2.0),
        history(steps=1),
        history(values=False),
        History([Record(0, 0, math.nan, math.nan, 0, 0, Cost())]),
        History([Record(k, 0, 0.0, 0.0, 0, 0, Cost()) for k in range(2)]),
    ],
    ids=["positive", "negative", "one record", "no values", "nothing finite", "zero"],
)
def test_convergence(tmp_path, shown, recwarn):
    convergence(shown, tmp_path / "c.png", "obstacle:n=63 by adagrad_$x_")
    width, height = size(tmp_path / "c.png")
    assert width == 1650 and height in (495, 900)
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]
    assert not recwarn.list


@pytest.mark.parametrize("solvers", [1, 3, 20])
def test_comparison(tmp_path, solvers, recwarn):
    runs = {f"solver{k}:lr=0.{k}": [history(10 + 5 * s, syncs=k % 2) for s in range(3)] for k in range(solvers)}
    runs["long"] = [history(3000, rate=0.001, syncs=2)]
    comparison(runs, tmp_path / "c.png", "cora")
    assert size(tmp_path / "c.png") == (1260, 990)
    assert not recwarn.list


def test_comparison_without_values_shows_the_measure(tmp_path):
    comparison({"a": [history(values=False)]}, tmp_path / "c.png")
    assert (tmp_path / "c.png").exists()


def test_a_failure_leaves_the_old_figure(tmp_path, monkeypatch):
    (tmp_path / "c.png").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convergence(history(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_band_is_of_quartiles_and_ended_runs_keep_their_last_value():
    def constant(steps, value):
        return History([Record(k, 0, value, value, 0, 0, Cost(gradient_evaluations=k)) for k in range(steps)])

    flat = [constant(3, 0.0), constant(5, 1.0), constant(5, 4.0)]
    grid, low, middle, high = band(flat, "gradient_evaluations", "value")
    assert list(grid) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([low[-1], middle[-1], high[-1]], [0.5, 1.0, 2.5])
    np.testing.assert_allclose(low, 0.5)


def test_band_thins_long_histories_and_keeps_their_ends():
    long = history(10_000, rate=1e-3)
    grid, _, middle, _ = band([long], "step", "measure")
    assert len(grid) <= 600 and (grid[0], grid[-1]) == (0, 9999)
    np.testing.assert_allclose(middle, np.exp(-1e-3 * grid))


def test_band_of_nothing():
    assert all(len(part) == 0 for part in band([History()], "step", "value"))
