"""Weather on 2 ranks is that on one: losses, derivatives, levels, errors; they hold own cells and read in turn."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import argparse, sys
    from pathlib import Path
    import numpy as np
    import torch
    import mldd
    from mldd.algebra import counting
    from mldd.problems.data.formats import AnemoiStore
    from mldd.problems.weather import CellReader, Weather
    from mldd.ranks import world
    sys.path.insert(0, ".")
    from experiments.forecasts.o96 import LEVELS, halo_rows, write

    comm, folder = world(), Path(sys.argv[1])
    path = folder / "o16.zarr"
    if comm.rank == 0:
        write(path, 16, 4, 12)
    comm.gather_items(0)
    rows, read = AnemoiStore.rows, []
    def spied(store, times, names, cells=slice(None)):
        read.extend(times)
        return rows(store, times, names, cells)
    AnemoiStore.rows = spied

    def close(a, b, what):
        assert float((a - b).norm()) <= 1e-10 * float(b.norm()), (what, float((a - b).norm()))

    given = {"hidden": 6, "layers": 2, "mesh_nodes": 162, "batch": 3, "chunk": 2, "dtype": "float64", "path": str(path)}
    both, alone = mldd.problem(Weather, comm=comm, **given), mldd.problem(Weather, **given)
    x = alone.initial(0) + 0.1
    v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    for k in range(LEVELS):
        levels = [p.hierarchy(LEVELS).levels[k].objective for p in (both, alone)]
        f, g = [level.sample(2) for level in levels]
        with counting() as cost:
            value, slope = f.value_and_gradient(x)
        wanted, reference = g.value_and_gradient(x)
        close(value, wanted, "value")
        close(slope, reference, "gradient")
        close(f.hessian_product(x, v), g.hessian_product(x, v), "product")
        close(levels[0].value(x), levels[1].value(x), "whole")
        assert cost.synchronisations == 1 + (k > 0), cost  # a coarse level: the sums over clusters, once
        assert cost.halo_bytes > 0  # also where cells are handed out that another rank has read
    for name, number in {**both.metrics(x), **both.validation(x)}.items():
        assert abs(number - {**alone.metrics(x), **alone.validation(x)}[name]) <= 1e-9 * number, name

    # own cells alone
    shard, cells = both.objective().batch, len(both.part)
    assert len(shard.features[0]) == len(both.own) and abs(len(both.own) - cells / 2) < 0.05 * cells
    assert abs(len(shard.static) - 81) <= 8 and all(0 < n < cells / 4 for n in halo_rows(both).values())
    own = both.own
    assert sorted(sum(comm.gather_items(own.tolist()), [])) == list(range(cells))
    store = both.store
    for chunks in ((1, 4, 1, cells), (3, 4, 1, cells), (2, 4, 1, 400)):
        other = folder / f"{chunks[0]}-{chunks[3]}.zarr"
        if comm.rank == 0:
            import zarr
            old, new = zarr.open_group(str(path), mode="r"), zarr.open_group(str(other), mode="w", zarr_format=2)
            for name in old:
                a = old[name]
                kept = chunks if name == "data" else a.chunks
                new.create_array(name, shape=a.shape, chunks=kept, dtype=a.dtype)[...] = a[...]
            new.attrs.update(dict(old.attrs))
        comm.gather_items(0)
        problem = mldd.problem(Weather, comm=comm, **given | {"path": str(other)})
        reader = CellReader(problem.store, ("v2", "v3"), own, comm)
        times = np.array([7, 1, 2, 7, 5, 11])
        read.clear()
        values = reader.read(times)
        everywhere = comm.gather_items(list(read))
        if reader.is_dealt:  # every time is read by one rank
            assert sorted(sum(everywhere, [])) == [1, 2, 5, 7, 11] and all(everywhere), everywhere
        else:
            assert chunks[3] == 400 and all(sorted(of) == [1, 2, 5, 7, 11] for of in everywhere)
        wanted = rows(store, sorted(set(times)), ("v2", "v3"))[np.searchsorted(sorted(set(times)), times)]
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, wanted[:, :, own].transpose(2, 0, 1))
    if comm.rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_ranks_agree_with_one(tmp_path):
    pytest.importorskip("zarr")
    agree(2, SCRIPT.replace("sys.argv[1]", repr(str(tmp_path))))
