"""Maps and skill figures: files that are pictures, whatever the nodes are like."""

import numpy as np
import pytest

from mldd.figures import maps

PLACES = np.stack([np.repeat([50.0, 51.0, 52.0], 4), np.tile([178.0, 179.0, 180.0, 181.0], 3)], axis=1)
VALUES = np.arange(12.0)


def size(path):
    """Return width and height of a PNG from its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


@pytest.mark.parametrize("grid", [None, (3, 4)])
@pytest.mark.parametrize(
    "values", [VALUES, np.where(VALUES == 3, np.nan, VALUES), np.full(12, np.nan), np.full(12, 2.0)]
)
def test_fields_with_gaps_and_constant_ones(tmp_path, grid, values):
    path = tmp_path / "map.png"
    panels = {"forecast": values, "truth": VALUES, "error": values - VALUES}
    maps.fields(path, PLACES, panels, errors=("error",), grid=grid, label="t (K)", title="a title")
    width, height = size(path)
    assert width > 2 * height


def test_fields_of_one_kind_and_of_a_single_node(tmp_path):
    maps.fields(tmp_path / "a.png", PLACES, {"field": VALUES})
    maps.fields(tmp_path / "b.png", PLACES[:1], {"error": VALUES[:1]}, errors=("error",))
    assert size(tmp_path / "a.png")[0] > 0
    assert size(tmp_path / "b.png")[0] > 0


@pytest.mark.parametrize("scale", [1.0, 0.0, np.nan])  # observations, a constant field, none
@pytest.mark.parametrize("leads", [[6.0], [1.0, 6.0, 24.0]])
def test_skill_of_one_and_of_several_leads(tmp_path, leads, scale):
    curves = {"persistence": np.linspace(1, 2, len(leads)) * scale, "network": np.linspace(0.5, 1, len(leads)) * scale}
    maps.skill(tmp_path / "a.png", leads, curves, unit="h", label="t (K)", title="test part")
    assert size(tmp_path / "a.png")[0] > 500


def test_around_has_no_jump():
    assert maps.around(np.array([350.0, 355, 5, 10])).tolist() == [-10, -5, 5, 10]
    assert maps.around(np.array([-1.0, 2.0])).tolist() == [-1, 2]
    assert np.ptp(maps.around(np.array([170.0, -170.0, 175.0]))) == 20
    globe = maps.around(np.arange(0.0, 360.0, 10.0))
    assert (globe.min(), globe.max()) == (-180, 170)
