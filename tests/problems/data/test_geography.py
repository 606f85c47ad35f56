"""Points on the sphere: distances, neighbours, graphs across the date line, grids around the globe, areas."""

import numpy as np
import pytest
import torch

from mldd.problems.data import connect, nearest, on_sphere
from mldd.problems.data.geography import EARTH, area_weights, closed, distance


def haversine(one, other):
    """Return the great-circle distance in kilometres by the textbook's formula."""
    (p, q), (a, b) = np.radians(one), np.radians(other)
    h = np.sin((a - p) / 2) ** 2 + np.cos(p) * np.cos(a) * np.sin((b - q) / 2) ** 2
    return 2 * EARTH * np.arcsin(np.sqrt(h))


@pytest.mark.parametrize(
    ("one", "other"), [((48.1, -1.6), (51.5, 0.1)), ((10, 179.9), (10, -179.9)), ((89, 0), (89, 180)), ((3, 3), (3, 3))]
)
def test_distance_is_that_of_the_haversine_formula(one, other):
    points = on_sphere(*np.array([one, other], dtype=float).T)
    assert distance(points[0], points[1]) == pytest.approx(haversine(one, other), rel=1e-9, abs=1e-6)


def test_nearest_is_that_of_all_distances():
    random = np.random.default_rng(0)
    points = on_sphere(random.uniform(-90, 90, 60), random.uniform(-180, 360, 60))
    every = distance(points[:, None], points)
    np.fill_diagonal(every, np.inf)
    assert (nearest(points, 7) == np.argsort(every, axis=1)[:, :7]).all()


def test_nearest_of_points_in_one_place_is_never_the_point_itself():
    near = nearest(np.tile([1.0, 0.0, 0.0], (9, 1)), 3)
    assert (near != np.arange(9)[:, None]).all()


@pytest.mark.parametrize("neighbours", [0, 5])
def test_as_many_neighbours_as_points_are_refused(neighbours):
    with pytest.raises(ValueError, match=r"`neighbours` must be in 1..4 for 5 nodes, got"):
        connect(np.arange(5.0), np.arange(5.0), "knn", neighbours)


@pytest.mark.parametrize("kind", ["knn", "radius", "grid"])
def test_the_date_line_is_no_border(kind):
    rows, columns = np.array([10.0, 11.1, 12.3]), np.array([-3.1, -1.9, -0.8, 0.0, 1.3, 2.2, 2.9])  # no ties
    graphs = []
    for middle in (0.0, 180.0):
        longitude = (columns + middle + 180) % 360 - 180
        place = np.repeat(rows, 7), np.tile(longitude, 3)
        graphs.append(connect(*place, kind, 4, radius=150.0, grid=(3, 7)))
    assert torch.equal(graphs[0].indices, graphs[1].indices)
    assert torch.allclose(graphs[0].weights, graphs[1].weights, rtol=1e-9)


@pytest.mark.parametrize("neighbours", [4, 8])
def test_a_region_across_greenwich_is_one_whatever_the_order_of_its_columns(neighbours):
    east = np.array([0.0, 2.5, 5.0, 352.5, 355.0, 357.5])
    place = np.repeat([60.0, 57.5, 55.0], 6), np.tile(east, 3)
    graph = connect(*place, "grid", neighbours, grid=(3, 6))
    row, column = graph.edge_index.numpy()
    apart = np.abs((place[1][row] - place[1][column] + 180) % 360 - 180)
    along = place[0][row] == place[0][column]
    assert sorted(set(apart)) == [0.0, 2.5] and (np.abs(place[0][row] - place[0][column]) <= 2.5).all()
    assert {(0.0, 357.5), (355.0, 357.5)} <= set(zip(place[1][row[along]], place[1][column[along]], strict=True))
    sorted_one = connect(place[0], np.tile(np.sort((east + 180) % 360 - 180), 3), "grid", neighbours, grid=(3, 6))
    assert graph.edges == sorted_one.edges
    assert torch.allclose(graph.weights.sort().values, sorted_one.weights.sort().values)


def test_rows_of_a_grid_may_come_in_any_order():
    rows = np.array([50.0, 40.0, 45.0])
    graph = connect(np.repeat(rows, 4), np.tile(np.arange(4.0), 3), "grid", 4, grid=(3, 4))
    row, column = graph.edge_index.numpy()
    assert np.abs(np.repeat(rows, 4)[row] - np.repeat(rows, 4)[column]).max() == 5.0


def test_longitudes_in_0_360_and_in_180_180_give_one_graph():
    random = np.random.default_rng(1)
    latitude, longitude = random.uniform(-80, 80, 50), random.uniform(-180, 180, 50)
    one, other = (connect(latitude, lon, "knn", 5) for lon in (longitude, longitude % 360))
    assert torch.equal(one.indices, other.indices)


def test_a_grid_around_the_globe_is_closed():
    latitude, longitude = np.repeat([-10.0, 0.0, 10.0], 36), np.tile(np.arange(0, 360, 10.0), 3)
    assert closed(longitude, (3, 36))
    graph = connect(latitude, longitude, "grid", 8, grid=(3, 36))
    assert graph.degree.reshape(3, 36).tolist() == [[5] * 36, [8] * 36, [5] * 36]
    assert not closed(longitude, (1, 30))


def test_grid_degrees():
    place = np.repeat(np.arange(4.0), 5), np.tile(np.arange(5.0), 4)
    four, eight = (connect(*place, "grid", k, grid=(4, 5)) for k in (4, 8))
    assert four.edges == 2 * (3 * 5 + 4 * 4)
    assert eight.edges == four.edges + 4 * 3 * 4


def test_radius_connects_what_is_within():
    random = np.random.default_rng(2)
    latitude, longitude = random.uniform(40, 50, 40), random.uniform(-5, 5, 40)
    points = on_sphere(latitude, longitude)
    within = (distance(points[:, None], points) <= 200.0) & ~np.eye(40, dtype=bool)
    graph = connect(latitude, longitude, "radius", radius=200.0)
    assert (graph.scipy(weighted=False).toarray() == within).all()


def test_a_mesh_has_far_edges_that_no_border_cuts():
    random = np.random.default_rng(3)
    latitude, longitude = random.uniform(-20, 20, 300), random.uniform(160, 200, 300)
    wrapped = (longitude + 180) % 360 - 180
    near, mesh = (connect(latitude, wrapped, kind, 6) for kind in ("knn", "mesh"))
    assert torch.equal(mesh.indices, connect(latitude, longitude, "mesh", 6).indices)
    a, b = near.scipy(weighted=False), mesh.scipy(weighted=False)
    assert (a.multiply(b) != a).nnz == 0
    levels = [300, 75, 18]
    assert mesh.edges - near.edges > 6 * sum(levels[1:]) * 0.7
    row, column = mesh.edge_index.numpy()
    points = on_sphere(latitude, longitude)
    assert distance(points[row], points[column]).max() > 3 * distance(*points[near.edge_index.numpy()]).max()


def test_near_edges_are_strong():
    graph = connect(np.zeros(5), np.array([0.0, 1.0, 3.0, 6.0, 10.0]), "knn", 2)
    matrix = graph.scipy().toarray()
    assert matrix[0, 1] > matrix[1, 2] > matrix[2, 3] > 0
    assert (matrix == matrix.T).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "radius", "radius": 0.0}, "`radius` must be > 0 km, got 0.0"),
        ({"kind": "grid"}, "knn, radius or mesh for nodes that are not on"),
        ({"kind": "grid", "grid": (2, 3), "neighbours": 5}, "`neighbours` must be 4 or 8"),
        ({"kind": "ring"}, "must be knn, radius, grid or mesh, got 'ring'"),
    ],
)
def test_bad_options_are_one_line(given, said):
    with pytest.raises(ValueError, match=said) as error:
        connect(np.arange(6.0), np.arange(6.0), **given)
    assert "\n" not in str(error.value)


def test_isolated_nodes_are_allowed():
    graph = connect(np.array([0.0, 0.0, 50.0]), np.array([0.0, 0.1, 0.0]), "radius", radius=50.0)
    assert graph.degree.tolist() == [1, 1, 0]


def test_areas_follow_the_cosine_and_a_pole_has_some():
    weights = area_weights(np.array([0.0, 60.0, 90.0]))
    assert weights[1] / weights[0] == pytest.approx(0.5)
    assert weights[2] > 0
    assert weights.mean() == pytest.approx(1.0)
