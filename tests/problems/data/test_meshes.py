"""Counts, Euler's formula, degrees and distributions of generated graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd.graph import Graph
from mldd.problems.data import meshes


def _symmetric(graph: Graph) -> bool:
    matrix = graph.scipy()
    return (matrix != matrix.T).nnz == 0 and matrix.diagonal().sum() == 0 and matrix.has_sorted_indices == 1


def _xyz(latitude: Tensor, longitude: Tensor) -> Tensor:
    u, v = latitude.deg2rad(), longitude.deg2rad()
    return torch.stack([u.cos() * v.cos(), u.cos() * v.sin(), u.sin()], dim=1)


@pytest.mark.parametrize("resolution", [0, 1, 3, 5])
def test_icosphere_counts_and_euler(resolution: int) -> None:
    graph, latitude, longitude = meshes.icosphere(resolution, multiscale=False)
    faces = meshes.icosphere_faces(resolution)
    assert graph.nodes == 10 * 4**resolution + 2 == len(latitude) == len(longitude)
    assert graph.edges == 60 * 4**resolution
    assert graph.nodes - graph.edges // 2 + len(faces) == 2
    assert torch.bincount(graph.degree).tolist()[5:] == ([12, graph.nodes - 12] if resolution else [12])
    assert _symmetric(graph)


def test_icosphere_triangles_are_its_edges() -> None:
    graph, *_ = meshes.icosphere(3, multiscale=False)
    faces = meshes.icosphere_faces(3)
    other = Graph.from_edges(torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]]).T, graph.nodes)
    assert torch.equal(graph.indices, other.indices)


def test_icosphere_multiscale_has_the_edges_of_all_levels_once() -> None:
    graph, *_ = meshes.icosphere(5)
    assert (graph.nodes, graph.edges) == (10_242, 81_900)  # hidden mesh of Anemoi
    assert _symmetric(graph)


def test_icosphere_levels_are_nested() -> None:
    fine, latitude, longitude = meshes.icosphere(3)
    coarse, u, v = meshes.icosphere(2)
    levels = meshes.icosphere_levels(fine.nodes)
    assert torch.bincount(levels).tolist() == [12, 30, 120, 480]
    torch.testing.assert_close(latitude[levels <= 2], u)
    torch.testing.assert_close(longitude[levels <= 2], v)
    assert set(zip(*coarse.edge_index.tolist(), strict=True)) <= set(zip(*fine.edge_index.tolist(), strict=True))


def test_icosphere_is_nearly_uniform_on_the_sphere() -> None:
    graph, latitude, longitude = meshes.icosphere(4, multiscale=False)
    points = _xyz(latitude, longitude)
    row, col = graph.edge_index
    length = (points[row] - points[col]).norm(dim=1)
    assert float(points.mean(dim=0).abs().max()) < 1e-12
    assert float(length.max() / length.min()) < 1.25
    assert float(latitude.abs().max()) <= 90 and float(longitude.abs().max()) <= 180


@pytest.mark.parametrize(
    ("neighbours", "entries"),
    [(2, lambda m, n: m * (n - 1)), (4, lambda m, n: m * (n - 1) + (m - 1) * n)]
    + [(6, lambda m, n: 3 * m * n - 2 * m - 2 * n + 1), (8, lambda m, n: 4 * m * n - 3 * m - 3 * n + 2)]
    + [(10, lambda m, n: 5 * m * n - 5 * m - 3 * n + 2), (12, lambda m, n: 6 * m * n - 5 * m - 5 * n + 2)],
)
def test_grid_mesh_has_the_stencil(neighbours: int, entries) -> None:
    graph, where = meshes.grid_mesh(7, 9, neighbours)
    assert graph.edges == 2 * entries(7, 9)
    assert int(graph.degree.max()) == neighbours
    assert _symmetric(graph)
    row, col = graph.edge_index
    assert float((where[row] - where[col]).abs().max()) == (2 if neighbours >= 10 else 1)


def test_grid_mesh_of_triangles_fulfils_eulers_formula() -> None:
    rows, columns = 5, 8
    graph, _ = meshes.grid_mesh(rows, columns, 6)
    triangles = 2 * (rows - 1) * (columns - 1)
    assert graph.nodes - graph.edges // 2 + triangles + 1 == 2


def test_grid_mesh_of_one_row_is_a_path() -> None:
    graph, _ = meshes.grid_mesh(1, 4, 8)
    assert graph.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]


@pytest.mark.parametrize("neighbours", [4, 10])
def test_grid_rows_are_the_rows_of_the_grid(neighbours: int) -> None:
    graph, _ = meshes.grid_mesh(11, 6, neighbours)
    matrix = graph.scipy()
    for first, last in ((0, 4), (4, 5), (5, 11), (3, 3)):
        indptr, indices = meshes.grid_rows(11, 6, neighbours, first, last)
        block = matrix[first * 6 : last * 6]
        assert indptr.tolist() == block.indptr.tolist()
        assert indices.tolist() == block.indices.tolist()


def test_power_law_has_the_slope_and_the_degree() -> None:
    graph = meshes.power_law(100_000, degree=10, exponent=2.5, seed=3)
    degree = graph.degree.numpy()
    assert _symmetric(graph)
    assert abs(degree.mean() - 10) < 0.3  # loops and repeated edges are gone
    tail = degree[(degree >= 20) & (degree <= 200)]
    # maximum likelihood of the exponent for a power law between 19.5 and 200.5 (bisection on its score)
    low, high = 1.5, 4.0
    mean = np.log(tail / 19.5).mean()
    while high - low > 1e-3:
        a, span = (low + high) / 2 - 1, math.log(200.5 / 19.5)
        low, high = ((low + high) / 2, high) if 1 / a - span / (math.exp(a * span) - 1) > mean else (low, a + 1)
    assert abs(low - 2.5) < 0.2


def test_power_law_follows_the_expected_degrees() -> None:
    weights = meshes._expected_degrees(50_000, 8.0, 2.8)
    degree = np.sort(meshes.power_law(50_000, 8.0, 2.8, seed=1).degree.numpy())[::-1]
    assert weights.mean() == pytest.approx(8.0)
    assert weights[0] == pytest.approx(math.sqrt(8.0 * 50_000), rel=0.05)
    assert degree[:2000].sum() == pytest.approx(weights[:2000].sum(), rel=0.05)


def test_power_law_numbers_nodes_at_random_and_repeats() -> None:
    graph, again, other = (meshes.power_law(20_000, 6.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(graph.indices, again.indices)
    assert not torch.equal(graph.degree, other.degree)
    assert float(graph.degree[:10_000].double().mean()) == pytest.approx(6.0, rel=0.1)


def test_geometric_with_radius_is_brute_force() -> None:
    graph, points = meshes.geometric(300, radius=0.1, seed=2)
    near = (torch.cdist(points, points) <= 0.1).fill_diagonal_(False)
    assert torch.equal(near.nonzero().T, graph.edge_index)


def test_geometric_with_k_is_brute_force() -> None:
    graph, points = meshes.geometric(200, 5, dimension=3, seed=2)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).topk(5, largest=False).indices
    near = torch.zeros(200, 200, dtype=torch.bool).scatter_(1, nearest, True)
    assert points.shape == (200, 3)
    assert torch.equal((near | near.T).nonzero().T, graph.edge_index)


def test_geometric_degree_is_that_of_a_poisson_process() -> None:
    graph, points = meshes.geometric(20_000, radius=0.02, seed=0)
    inner = ((points > 0.02) & (points < 0.98)).all(dim=1)
    assert float(graph.degree[inner].double().mean()) == pytest.approx(20_000 * math.pi * 0.02**2, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meshes.icosphere(11), "`resolution` must be in 0..10, got 11"),
        (lambda: meshes.icosphere_levels(13), "`nodes` must be 10 4"),
        (lambda: meshes.grid_mesh(0, 3), "`rows` and `columns` must be >= 1"),
        (lambda: meshes.grid_mesh(3, 3, 5), "`neighbours` must be 2, 4, 6, 8, 10 or 12, got 5"),
        (lambda: meshes.grid_rows(3, 3, 4, 2, 1), "`first` and `last` must be"),
        (lambda: meshes.power_law(10, 20.0), "`degree` in"),
        (lambda: meshes.power_law(10, 2.0, 2.0), "`exponent` must be > 2"),
        (lambda: meshes.geometric(10), "exactly one of `k` and `radius`"),
        (lambda: meshes.geometric(10, 10), "`k` must be in 1..9, got 10"),
        (lambda: meshes.geometric(10, radius=-1.0), "`radius` must be > 0"),
        (lambda: meshes.geometric(1, 1), "`nodes` must be >= 2"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
