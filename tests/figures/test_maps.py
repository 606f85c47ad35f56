"""Maps and skill figures: pictures whatever the nodes are like, with all text on the canvas."""

import numpy as np
import pytest

from mldd.figures import maps
from tests.figures.boxes import outside

PLACES = np.stack([np.repeat([50.0, 51.0, 52.0], 4), np.tile([178.0, 179.0, 180.0, 181.0], 3)], axis=1)
VALUES = np.arange(12.0)
LABEL = "2 metre temperature above the mean of thirty years, corrected for height (K)"


def size(path):
    """Return width and height of a PNG from its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


@pytest.mark.parametrize("grid", [None, (3, 4)])
@pytest.mark.parametrize(
    "values", [VALUES, np.where(VALUES == 3, np.nan, VALUES), np.full(12, np.nan), np.full(12, 2.0)]
)
def test_fields_with_gaps_and_constant_ones(tmp_path, grid, values, monkeypatch):
    path = tmp_path / "map.png"
    panels = {"value at 2019-01-01 12:00": values, "forecast": values, "truth": VALUES, "error": values - VALUES}
    figure = maps.fields(PLACES, panels, path, errors=("error",), grid=grid, label=LABEL, title="a title of $1$" * 9)
    width, height = size(path)
    assert width == 2100 and width > 1.5 * height
    assert outside(figure, monkeypatch) == []


def test_places_that_are_lengths():
    places = np.argwhere(np.ones((3, 4))) * 2.0
    panel = maps.fields(places, {"u": VALUES}, grid=(3, 4), label="u", axes=("y (m)", "x (m)")).axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_aspect()) == ("x (m)", "y (m)", 1.0)
    panel = maps.fields(PLACES, {"u": VALUES}, grid=(3, 4), label="u").axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("longitude", "latitude")
    assert panel.get_aspect() == pytest.approx(1 / np.cos(np.radians(51.0)))


def test_fields_of_one_kind_and_of_a_single_node(tmp_path, monkeypatch):
    figure = maps.fields(PLACES, {"field": VALUES}, str(tmp_path / "a.png"), label="t (K)")
    assert size(tmp_path / "a.png")[0] == 1020 and outside(figure, monkeypatch) == []
    figure = maps.fields(PLACES[:1], {"error": VALUES[:1]}, errors=("error",))
    assert outside(figure, monkeypatch) == []


@pytest.mark.parametrize("scale", [1.0, 0.0, np.nan, 1e5])  # observations, a constant field, none, a pressure
@pytest.mark.parametrize("leads", [[6.0], [1.0, 6.0, 24.0]])
def test_skill_of_one_and_of_several_leads(tmp_path, leads, scale, monkeypatch):
    curves = {"persistence": np.linspace(1, 2, len(leads)) * scale, "network": np.linspace(0.5, 1, len(leads)) * scale}
    curves["encode-process-decode network"] = curves["network"] / 2
    figure = maps.skill(leads, {LABEL: curves}, str(tmp_path / "a.png"), unit="h", title="test part")
    assert size(tmp_path / "a.png")[0] == 1020
    assert outside(figure, monkeypatch) == []


def test_around_has_no_jump():
    assert maps.around(np.array([350.0, 355, 5, 10])).tolist() == [-10, -5, 5, 10]
    assert maps.around(np.array([-1.0, 2.0])).tolist() == [-1, 2]
    assert np.ptp(maps.around(np.array([170.0, -170.0, 175.0]))) == 20
    globe = maps.around(np.arange(0.0, 360.0, 10.0))
    assert (globe.min(), globe.max()) == (-180, 170)
