"""Which reader a file gets, and formats of a user's own on the command line."""

import json
import textwrap

import numpy as np
import pytest

from mldd.command import names
from mldd.problems.data import DataError, load_graph, load_series
from mldd.problems.data.formats import holds
from tests.helpers import user_arrays

OWN = """
    import numpy as np
    from mldd.problems.data import DataError, File, GraphArrays, SeriesArrays

    def graph(file: File) -> GraphArrays:
        \"\"\"Read a graph: a line `node class feature feature ...` per node, a line `edge node node` per edge.\"\"\"
        lines = [line.split() for line in file.content().decode().splitlines()]
        nodes = np.array([line[1:] for line in lines if line[0] == "node"], dtype=float)
        edges = np.array([line[1:] for line in lines if line[0] == "edge"], dtype=int)
        if len(edges) == 0:
            raise DataError(f"{file.name}: expected edges, got none; write `edge 0 1`")
        return GraphArrays(edges.T, nodes[:, 1:], nodes[:, 0].astype(int))

    def series(file: File) -> SeriesArrays:
        table = np.loadtxt(file.path)
        time = np.datetime64("2020-01-01", "s") + np.arange(len(table)) * np.timedelta64(3600, "s")
        places = np.arange(table.shape[1], dtype=float)
        return SeriesArrays(time, 50 + places, places, {"v": table})

    def silent(file):
        return None

    def wrong(file: File) -> SeriesArrays:
        return graph(file)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_format.py").write_text(textwrap.dedent(OWN))
    lines = [f"node {k % 3} {k % 5} {k % 2}" for k in range(60)] + [f"edge {k} {(k + 1) % 60}" for k in range(60)]
    (tmp_path / "ring.csvgraph").write_text("\n".join(lines))
    np.savetxt(tmp_path / "table.txt", np.random.default_rng(0).standard_normal((80, 9)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("reader", ["my_format.py:graph", "my_format:graph"])
def test_a_format_of_ones_own_is_trained_on(run, here, without_figures, reader):
    line = f"train ring.csvgraph:hidden=4,reader={reader} --solver adam --steps 2 --out o"
    code, out, err = run(line)
    assert (code, err.count("\n")) == (0, err.count("\r")) and "one way only and were taken both ways" in out
    content = json.loads((here / "o" / "result.json").read_text())
    assert content["details"]["notes"] == ["60 of 60 edges go one way only and were taken both ways"]
    assert load_graph("ring.csvgraph", reader=reader).graph.edges == 120


def test_a_series_of_ones_own_is_forecast(run, here):
    assert run("train table.txt:reader=my_format.py:series --solver adam --steps 1 --quiet") == (0, "", "")
    assert np.array_equal(load_series("table.txt", reader="my_format:series").values[..., 0], np.loadtxt("table.txt"))


def test_an_entry_point_is_a_suffix(here, monkeypatch):
    folder = here / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[mldd.formats]\ncsvgraph = my_format:graph\n")
    from mldd.problems.data.formats import choice

    choice._readers.cache_clear()
    try:
        monkeypatch.setattr(names, "FORMATS", choice._readers())
        assert load_graph("ring.csvgraph").graph.nodes == 60
        assert names.problem_spec("ring.csvgraph:hidden=4").kind.__name__ == "NodeClassification"
    finally:
        choice._readers.cache_clear()


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("ring.csvgraph", "unknown problem 'ring.csvgraph'"),
        ("ring.csvgraph:reader=my_format.py:grap", "must have a function grap (did you mean graph?), got graph series"),
        ("ring.csvgraph:reader=my_format.py:silent", "annotated `-> GraphArrays` or `-> SeriesArrays`, got None"),
        ("ring.csvgraph:reader=my_format.py:wrong", "ring.csvgraph: expected a time series, got a graph"),
        ("ring.csvgraph:reader=npy", "`reader` must be one of npz pt"),
        ("none.csvgraph:reader=my_format.py:graph", "the problem none.csvgraph must be a file, got none"),
        ("none.npz:hidden=3", "the problem none.npz must be a file, got none"),
        ("my_format.py:reader=my_format.py:graph", "my_format.py:"),
    ],
)
def test_what_is_wrong_with_a_file_or_reader_is_one_line(run, here, problem, said):
    code, out, err = run(f"train {problem} --solver adam --steps 1")
    assert (code, out) == (2, "") and said in err.splitlines()[-1] and err.count("\n") == 1


def test_the_file_that_a_person_means_is_found(here, monkeypatch):
    places = ["a.npz.folder/graph.npz", "v1.npz.npz", "UPPER.NPZ", "12:30.npz", "with space.npz"]
    for place in places:
        (here / place).parent.mkdir(exist_ok=True)
        with open(here / place, "wb") as stream:
            np.savez(stream, **user_arrays())
        for text in (place, f"./{place}", f"{place}:hidden=4", f"~/{place}:hidden=4"):
            monkeypatch.setenv("HOME", str(here))
            spec = names.problem_spec(text)
            assert spec.kind.__name__ == "NodeClassification", text
            assert load_graph(spec.fixed["name"]).graph.nodes == 60


def test_an_archive_with_times_is_a_series(here):
    np.savez("a.npz", time=np.arange(3))
    np.savez("b.npz", edges=np.arange(3))
    assert (holds("a.npz"), holds("b.npz"), holds("c.pt"), holds("d.nc"), holds("e.zarr/")) == (
        "series",
        "graph",
        "graph",
        "series",
        "series",
    )
    with pytest.raises(DataError, match="got suffix '.xyz'; name a reader of it, reader=file.py:function"):
        holds("f.xyz")
    with pytest.raises(DataError, match="expected a graph, got a time series"):
        np.savez("s.npz", time=np.arange(3).astype("M8[D]"), lat=np.zeros(2), lon=np.zeros(2), v=np.zeros((3, 2)))
        load_graph("s.npz")


def test_formats_are_listed(run):
    code, out, _ = run("list")
    listed = out[out.index("formats:") :]
    assert code == 0 and ".npz" in listed and ".nc .nc4 .cdf" in listed
    assert "Return the series in a NetCDF file" in listed and "FILE:reader=file.py:function" in listed
