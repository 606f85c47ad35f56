"""The command `mldd partition`: table, files, shards, and what it refuses."""

import csv
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mldd.command.partition_table import table
from mldd.graph import partition, report
from mldd.loop import Problem
from mldd.problems.graphs import NodeClassification
from tests.helpers import user_arrays
from tests.small_graphs import grid

pytest.importorskip("pymetis", reason="partitions need pymetis")


@pytest.fixture
def graph_file(tmp_path):
    path = tmp_path / "graph.npz"
    np.savez(path, **user_arrays())
    return path


def test_partition_prints_and_writes(run, graph_file, tmp_path):
    out_dir = tmp_path / "out"
    code, out, err = run(
        f"partition {graph_file} --parts 4 --methods metis,metis-volume,random --seed 2 --out", out_dir
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("4 parts, weights: none") and lines[1].split()[:3] == ["method", "halo", "rows"]
    assert [line.split()[0] for line in lines[2:5]] == ["metis", "metis-volume", "random"]
    content = json.loads((out_dir / "partition.json").read_text())
    assert content["parts"] == 4 and content["seed"] == 2
    graph = NodeClassification(str(graph_file)).graph
    expected = report(graph, partition(graph, 4, seed=2))
    assert {key: content["rows"][0][key] for key in expected} == expected
    rows = list(csv.DictReader((out_dir / "partition.csv").open()))
    assert [row["method"] for row in rows] == ["metis", "metis-volume", "random"]
    assert int(rows[0]["halo_rows"]) == expected["halo_rows"] and int(rows[0]["largest_halo"]) == max(expected["halo"])
    assert (out_dir / "partition.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in out_dir.iterdir()) == ["partition.csv", "partition.json", "partition.png"]
    assert run(f"partition {graph_file} --parts 4 --quiet") == (0, "", "")


def test_the_time_of_a_method_is_without_that_of_its_report(graph_file, run, tmp_path, monkeypatch):
    clock = itertools.count()  # goes on by one whenever it is looked at, and with the report

    def slow(graph, part):
        next(clock)
        return report(graph, part) | {"largest_halo": 0, "most_components": 1}

    monkeypatch.setattr("mldd.command.partition_table.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr("mldd.command.partition_table.measured", slow)
    assert run(f"partition {graph_file} --parts 2 --quiet --out", tmp_path)[0] == 0
    assert {row["seconds"] for row in json.loads((tmp_path / "partition.json").read_text())["rows"]} == {1.0}


def test_partition_weighs_edges(run, graph_file):
    code, out, err = run(f"partition {graph_file} --parts 3 --weights features")
    assert (code, err) == (0, "") and "weighted cut" in out


def test_partition_gives_the_best_part_away(run, graph_file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        NodeClassification, "write_shards", lambda self, part, folder: given.append((part, folder)), raising=False
    )
    code, out, _ = run(f"partition {graph_file} --parts 4 --methods random,metis --write", tmp_path / "shards")
    graph = NodeClassification(str(graph_file)).graph
    assert code == 0 and torch.equal(given[0][0], partition(graph, 4)) and given[0][1] == tmp_path / "shards"
    assert out.splitlines()[-1] == f"written  {tmp_path / 'shards'}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "quadratic --parts 2",
            "mldd partition needs a problem that holds a graph as a whole (cora, say), got quadratic",
        ),
        ("obstacle --parts 2 --write {tmp}", "needs a problem that holds a graph as a whole"),
        ("FILE", "the following arguments are required: --parts"),
        ("FILE --parts 0", "must be a whole number >= 1, got '0'"),
        ("FILE --parts 61", "`parts` must be >= 1 and <= nodes of the graph (60), got 61"),
        ("FILE --parts 2 --methods meits", "`method` must be one of metis metis-volume"),
        ("FILE --parts 2 --methods geometric", "method geometric needs `coordinates`"),
        ("FILE --parts 2 --weights distance", "--weights distance needs a problem with coordinates, got"),
        ("FILE --parts 2 --weights size", "invalid choice: 'size'"),
        ("FILE --parts 2 --overlap 1", "unrecognized arguments: --overlap 1"),
        ("FILE --parts 2 --imbalance -1", "`imbalance` must be >= 0"),
        ("FILE --parts 2 --out {tmp}/graph.npz", "graph.npz"),
    ],
)
def test_partition_refuses(run, graph_file, tmp_path, words, message):
    code, out, err = run("partition " + words.replace("FILE", str(graph_file)).format(tmp=tmp_path))
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_problems_that_write_no_shards_say_so(run, monkeypatch, tmp_path):
    class WithoutShards(Problem):
        graph = grid(4)

    problem = WithoutShards()
    monkeypatch.setattr("mldd.command.builder.build_problem", lambda *arguments: problem)
    code, out, err = run("partition quadratic --parts 2 --write", tmp_path)
    assert code == 2 and "--write needs a problem that can write its parts to files, got quadratic; leave it out" in err


def test_table_marks_the_fewest_halo_rows():
    graph, rows = grid(6), []
    for name, part in (("good", torch.arange(36) // 18), ("bad", torch.arange(36) % 2)):
        found = report(graph, part)
        rows.append({"method": name, "largest_halo": 9, "most_components": 1, "seconds": 0.1} | found)
    lines = table(rows)
    assert lines[1].split()[:4] == ["good", "12", "9", "6"] and lines[1].endswith("*") and not lines[2].endswith("*")
