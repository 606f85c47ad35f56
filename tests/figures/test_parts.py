"""Pictures of parts: that they are drawn, and that what they show can be told apart."""

import numpy as np
import pytest
import torch

from mldd.figures import draw_parts
from mldd.figures.parts import _map, colours_of_parts
from mldd.graph import Graph
from tests.figures.boxes import outside
from tests.small_graphs import grid


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def ring(n):
    return Graph.from_edges(torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]), n)


@pytest.mark.parametrize("kind", ["map", "layout", "blocks"])
def test_parts_are_drawn(kind, tmp_path, monkeypatch):
    graph = ring(1200) if kind == "blocks" else grid(6)
    part = torch.arange(graph.nodes) * 5 // graph.nodes
    place = torch.stack([torch.arange(36) / 6 + 50.0, torch.arange(36) % 6 * 1.0 + 177], 1) if kind == "map" else None
    named = {"/home/of/mine/my_$cut$.py:stripes: 12 halo rows": part, "one": torch.zeros_like(part), "runs": part}
    figure = draw_parts(graph, named, tmp_path / "parts.png", place, "three")
    assert is_picture(tmp_path / "parts.png") and outside(figure, monkeypatch) == []
    assert outside(draw_parts(graph, {"one": part}, None, place), monkeypatch) == []
    assert [p.name for p in tmp_path.iterdir()] == ["parts.png"]


@pytest.mark.parametrize("edges", [[[], []], [[0], [1]]])
@pytest.mark.parametrize("nodes", [2, 3])
def test_tiny_graphs_are_drawn(nodes, edges, tmp_path):
    graph = Graph.from_edges(torch.tensor(edges, dtype=torch.int64), nodes)
    draw_parts(graph, {"a": torch.arange(nodes)}, str(tmp_path / "a.png"))
    assert is_picture(tmp_path / "a.png")


def test_neighbouring_parts_have_different_colours():
    number = np.arange(20 * 20)
    part = number // 20 // 4 * 5 + number % 20 // 4  # 25 square parts
    colour = colours_of_parts(grid(20), part)
    row, col = grid(20).edge_index.numpy()
    crossing = part[row] != part[col]
    assert (colour[part[row[crossing]]] != colour[part[col[crossing]]]).all()
    assert len(set(colours_of_parts(ring(7), np.arange(7)))) == 7, "as many colours as there are"


def test_maps_are_not_torn_at_180_degrees():
    near = _map(torch.tensor([[0.0, 178.0], [0.0, -179.0], [1.0, 179.5]]))
    assert np.ptp(near[:, 0]) == pytest.approx(3) and near[:, 1].tolist() == [0, 0, 1]
    globe = torch.stack([torch.zeros(72), torch.arange(0.0, 360.0, 5.0)], 1)
    assert _map(globe)[:, 0].min() == -180
