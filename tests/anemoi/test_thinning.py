"""Data sets with fewer cells: those nearest to a mesh, by brute force; levels are nested; numbers are the same."""

import numpy as np
import pytest

from mldd.anemoi.thinning import cells_near_mesh
from mldd.command import main
from mldd.problems.data import icosphere, on_sphere
from tests.small_anemoi import attributes_of, grid, write_zarr

_random = np.random.default_rng(3)  # moved a little, so that no two cells are equally near
LATITUDES, LONGITUDES = (place + _random.uniform(-0.5, 0.5, place.size) for place in grid(33, 60))
LONGITUDES %= 360
RESOLUTION = 2


def by_hand(resolution):
    """Nearest cells of all nodes that have one within half of the longest edge."""
    mesh, latitude, longitude = icosphere(resolution, multiscale=False)
    nodes, cells = on_sphere(latitude.numpy(), longitude.numpy()), on_sphere(LATITUDES, LONGITUDES)
    longest = max(
        np.linalg.norm(nodes[i] - nodes[j])
        for i in range(mesh.nodes)
        for j in mesh.indices[mesh.indptr[i] : mesh.indptr[i + 1]].tolist()
    )
    distance = np.linalg.norm(nodes[:, None] - cells, axis=2)
    return sorted({int(row.argmin()) for row in distance if row.min() <= longest / 2})


def test_cells_are_the_nearest_ones_and_levels_are_nested():
    levels = [cells_near_mesh(LATITUDES, LONGITUDES, resolution).tolist() for resolution in range(4)]
    assert levels[RESOLUTION] == by_hand(RESOLUTION)
    for coarse, fine in zip(levels, levels[1:], strict=False):
        inner = {cell for cell in coarse if abs(LATITUDES[cell]) < 60}
        assert inner < set(fine)


def test_a_region_has_only_its_part_of_the_mesh():
    region = (LATITUDES > 30) & (LONGITUDES < 90)
    cells = cells_near_mesh(LATITUDES[region], LONGITUDES[region], 3)
    whole = icosphere(3)[0].nodes
    assert 0.3 * whole / 16 < len(cells) < 3 * whole / 16  # a sixteenth of the sphere, and some of its border


def test_a_data_set_with_some_of_its_cells(tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    data = np.random.default_rng(0).normal(size=(4, 2, 1, len(LATITUDES)))
    dates = np.datetime64("2020-01-01") + np.arange(4) * np.timedelta64(6, "h")
    store = write_zarr(tmp_path / "set.zarr", data, ["2t", "z"], dates, LATITUDES, LONGITUDES, field_shape=[1980])
    words = ["anemoi", "thin", str(store), "--resolution", "2", "--out", str(tmp_path / "thin.zarr")]
    assert main(words) == 0
    cells = by_hand(RESOLUTION)
    assert f"{len(cells)} of 1980 cells" in capsys.readouterr().out
    old, new = (zarr.open_group(str(path), mode="r") for path in (store, tmp_path / "thin.zarr"))
    assert np.array_equal(new["data"][:], old["data"][:][..., cells])
    assert np.array_equal(new["longitudes"][:], LONGITUDES[cells])
    assert new["data"].chunks == (1, 2, 1, len(cells))
    for name in ("mean", "stdev", "dates"):  # of all cells, so that a network can be handed on
        assert np.array_equal(new[name][:], old[name][:])
    assert attributes_of(tmp_path / "thin.zarr")["field_shape"] == [len(cells)]
    assert main(words) == 2 and "must be a new folder" in capsys.readouterr().err
    few = write_zarr(tmp_path / "few.zarr", data[..., :3], ["2t", "z"], dates, LATITUDES[:3], LONGITUDES[:3])
    for resolution, words in (("0", "got 0 for 0; give a higher one"), ("9", "got 3 for 9; give a lower one")):
        assert main(["anemoi", "thin", str(few), "--resolution", resolution, "--out", str(tmp_path / "no.zarr")]) == 2
        assert words in capsys.readouterr().err
