"""Hidden meshes: geometry against closed forms, coverage of the grid, cuts and merges of links, bad coordinates."""

import numpy as np
import pytest

from mldd.problems.data import Link, hidden_mesh, on_sphere, regional_mesh
from mldd.problems.data.mesh_levels import edge_features, farthest_points, global_mesh


def grid(rows=6, columns=7, step=0.5, west=-2.0):
    latitude, longitude = np.meshgrid(50 + step * np.arange(rows), west + step * np.arange(columns), indexing="ij")
    return latitude.ravel(), longitude.ravel()


def rotation(latitude, longitude):
    """Return the matrix that turns the point of these degrees to latitude and longitude zero."""
    phi, theta = np.radians([latitude, longitude])
    about_z = np.array([[np.cos(theta), np.sin(theta), 0], [-np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(phi), 0, np.sin(phi)], [0, 1, 0], [-np.sin(phi), 0, np.cos(phi)]])
    return about_y @ about_z


def test_edge_features_are_differences_after_the_rotation_of_the_receiver():
    random = np.random.default_rng(0)
    latitude, longitude = random.uniform(-90, 90, 20), random.uniform(-180, 540, 20)
    points = on_sphere(latitude, longitude)
    features = edge_features(points[:10], points[10:])
    for k in range(10):
        turn = rotation(latitude[k], longitude[k])
        assert np.allclose(turn @ points[k], [1, 0, 0])
        assert np.allclose(features[k, 1:], turn @ points[10 + k] - [1, 0, 0])
        assert np.isclose(features[k, 0], np.linalg.norm(points[10 + k] - points[k]))


def test_features_do_not_depend_on_where_longitudes_begin():
    latitude, longitude = (a + np.random.default_rng(0).normal(0, 0.05, len(a)) for a in grid(west=-1.5))
    here, there = (regional_mesh(latitude, turned, 12) for turned in (longitude, longitude % 360))
    for a, b in ((here.encode, there.encode), (here.process, there.process), (here.decode, there.decode)):
        assert (a.matrix != b.matrix).nnz == 0
        assert np.allclose(a.features, b.features, atol=1e-12)


def test_farthest_points_cover():
    points = on_sphere(*grid(12, 12))
    chosen = farthest_points(points, 36)
    assert len(set(chosen.tolist())) == 36
    gap = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1).max()
    apart = np.linalg.norm(points[chosen][:, None] - points[chosen], axis=2) + 9 * np.eye(36)
    assert gap <= apart.min() + 1e-12  # Gonzalez: no gap is wider than the distance of any two
    assert np.array_equal(farthest_points(points, 9), chosen[:9])


def test_every_node_hears_and_is_heard():
    latitude, longitude = grid(10, 9)
    mesh = regional_mesh(latitude, longitude, 20, levels=2, links=3, neighbours=4)
    assert mesh.sizes == (20, 5)
    assert mesh.encode.matrix.shape == mesh.decode.matrix.shape[::-1] == (20, 90)
    assert (mesh.decode.matrix.getnnz(1) == 3).all()
    assert (mesh.encode.matrix.getnnz(1) > 0).all()
    assert (mesh.encode.matrix.getnnz(0) == 3).all()
    assert abs(mesh.process.matrix.diagonal()).max() == 0
    pattern = mesh.process.matrix != 0
    assert (pattern != pattern.T).nnz == 0
    assert (pattern.sum(1) >= 4).all()
    for link in (mesh.encode, mesh.process, mesh.decode):
        assert np.allclose(link.matrix.sum(1), 1)
        assert np.isclose(link.features[:, 0].max(), 1)
    fine = regional_mesh(latitude, longitude, 20, levels=1, links=3, neighbours=4).process.matrix != 0
    assert (fine > pattern).nnz == 0
    assert pattern.nnz > fine.nnz
    for level, size in enumerate(mesh.sizes):
        labels = mesh.labels(level)
        assert sorted(set(labels.tolist())) == list(range(size))
    part = np.arange(90) // 45
    assert np.array_equal(mesh.owners(part), (mesh.points[:, 2] > mesh.grid[44:46, 2].mean()).astype(int))


def test_global_mesh_is_the_icosphere():
    latitude, longitude = np.meshgrid(np.arange(90.0, -91, -30), np.arange(0.0, 360, 30), indexing="ij")
    mesh = global_mesh(latitude.ravel(), longitude.ravel(), 2)
    assert mesh.sizes == (162, 42, 12)
    assert mesh.process.matrix.nnz == 20 * (4**3 - 1)
    assert (mesh.decode.matrix.getnnz(1) == 3).all()
    assert np.isfinite(mesh.static).all()
    assert np.isfinite(mesh.encode.features).all()


def test_kind_of_mesh_follows_the_extent():
    latitude, longitude = np.meshgrid(np.arange(-90.0, 91, 15), np.arange(-180.0, 180, 15), indexing="ij")
    latitude, longitude = latitude.ravel(), longitude.ravel()
    assert hidden_mesh(latitude, longitude).sizes == (42, 12)
    assert hidden_mesh(latitude, longitude, 162).sizes == (162, 42, 12)
    half = longitude < 100
    assert hidden_mesh(latitude[half], longitude[half], 50).sizes == (50, 12, 3)
    assert len(hidden_mesh(*grid()).points) == 10


def test_cut_and_merged_links():
    random = np.random.default_rng(1)
    rows, columns = (random.random((6, 5)) < 0.6).nonzero()
    points = on_sphere(random.uniform(-80, 80, 11), random.uniform(0, 360, 11))
    link = Link.of(np.stack([rows, columns]), points[:6], points[6:])
    dense = np.zeros((6, 5, 4))
    dense[link.matrix.nonzero()] = link.features
    some, others = np.array([4, 0, 3]), np.array([2, 1, 4, 0])
    cut = link.cut(some, others)
    assert np.allclose(cut.matrix.toarray(), link.matrix.toarray()[some][:, others])
    assert np.allclose(cut.features, dense[some][:, others][cut.matrix.nonzero()])

    receivers, senders = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 0, 1, 1, 0])
    merged = link.merged(receivers, senders)
    to, of = np.eye(3)[receivers], np.eye(2)[senders]
    assert np.allclose(merged.matrix.toarray(), (to / to.sum(0)).T @ link.matrix.toarray() @ of)
    weighted = np.einsum("ia,ij,jb,ijk->abk", to, link.matrix.toarray(), of, dense)
    weight = to.T @ link.matrix.toarray() @ of
    where = merged.matrix.nonzero()
    assert np.allclose(merged.features, weighted[where] / weight[where][:, None])
    same = link.merged(np.arange(6), np.arange(5))
    assert np.allclose(same.matrix.toarray(), link.matrix.toarray())
    assert np.allclose(same.features, link.features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 43}, "`nodes` must be in 3..42"),
        ({"nodes": 2}, "`nodes` must be in 3..42"),
        ({"links": 0}, "`links` must be >= 1"),
        ({"levels": 0}, "`levels` must be >= 1"),
        ({"latitude": np.full(42, 91.0)}, "must be in -90..90"),
        ({"longitude": np.full(42, np.nan)}, "must be in -90..90 and `longitude` finite"),
        ({"longitude": np.zeros(3)}, "must have one shape"),
        ({"latitude": np.zeros(42), "longitude": np.zeros(42)}, r"`nodes` must be in 3\.\.1 \(distinct points\)"),
    ],
)
def test_bad_input(change, message):
    latitude, longitude = grid()
    with pytest.raises(ValueError, match=message):
        regional_mesh(**{"latitude": latitude, "longitude": longitude, **change})


def test_unknown_level():
    with pytest.raises(ValueError, match="`level` must be in 0..1"):
        regional_mesh(*grid(), 14).labels(3)
