"""Clusters of similar inputs: equitable partitions are found, and give a coarse graph that is exact."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph
from mldd.problems.data import GraphData
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.problems.graphs.graph_levels import thinned
from mldd.problems.graphs.similarity import similar
from mldd.problems.nets.layers import layer_kinds


def lifted(copies=3, seed=0):
    """A ring of 8 nodes, and copies of it: the copies of a node are alike for every network."""
    rng = np.random.default_rng(seed)
    ring = np.stack([np.arange(8), (np.arange(8) + 1) % 8])
    edges = np.concatenate([ring + 8 * k for k in range(copies)], axis=1)
    features = np.tile(rng.random((8, 5)), (copies, 1))
    labels = np.tile(np.arange(8) % 2, copies)
    n = 8 * copies
    place = torch.arange(n)
    return GraphData(
        "lifted",
        Graph.from_edges(torch.from_numpy(edges), n),
        torch.from_numpy(features),
        torch.from_numpy(labels),
        train=place < n - 2,
        validation=place == n - 2,
        test=place == n - 1,
        classes=2,
    )


@pytest.mark.parametrize("model", layer_kinds())
def test_copies_fall_together_and_the_coarse_graph_is_exact(model):
    data = lifted()
    problem = NodeClassification(
        data, network=Network(model=model, dropout=0.0), spaces=Spaces(clusters=8, clustering="features")
    )
    labels = similar(problem.source.operator, data.features.numpy(), 2, [8])[0]
    assert torch.equal(labels[:8], labels[8:16]) and torch.equal(labels[:8], labels[16:])
    assert len(labels.unique()) == 8
    fine, coarse = (level.objective for level in problem.hierarchy(2).levels)
    x = problem.initial(3)
    assert float(coarse.value(x)) == pytest.approx(float(fine.value(x)), rel=1e-12)
    assert torch.allclose(coarse.gradient(x), fine.gradient(x), rtol=1e-10, atol=1e-14)


def test_numbers_seeds_and_wide_sparse_features():
    rng = np.random.default_rng(1)
    operator = sp.identity(200, format="csr")
    features = sp.random(200, 500, density=0.05, format="csr", random_state=1)
    first, again = (similar(operator, features, 2, [20, 5], seed=4) for _ in range(2))
    assert [len(m.unique()) for m in first] == [20, 5]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    few = similar(operator, np.repeat(rng.random((4, 3)), 50, axis=0), 1, [30])[0]
    assert len(few.unique()) == 4, "equal nodes cannot be told apart"


def test_one_thread_adds_up_the_centres(monkeypatch):
    """Ranks make their own clusters, and several threads would round in any order."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_info, threadpool_limits

    threads = []

    def fitted(self, rows):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")
        return np.arange(len(rows)) % 2

    monkeypatch.setattr(KMeans, "fit_predict", fitted)
    rows = np.random.default_rng(0).random((9, 2))
    with threadpool_limits(2, "openmp"):
        similar(sp.identity(9, format="csr"), rows, 1, [2])
    assert threads and set(threads) == {1}


def test_blobs_are_found():
    rng = np.random.default_rng(2)
    centre = np.repeat([[0.0, 0.0], [50.0, 0.0]], 40, axis=0)
    labels = similar(sp.identity(80, format="csr"), centre + rng.standard_normal((80, 2)), 1, [2])[0]
    assert len(labels[:40].unique()) == len(labels[40:].unique()) == 1 and labels[0] != labels[79]


@pytest.mark.parametrize("kept", [0.1, 0.5, 1.0])
def test_thinning_keeps_the_largest_and_the_sums(kept):
    matrix = sp.random(30, 20, density=0.4, format="csr", random_state=3)
    thin = sp.csr_matrix(thinned(matrix, kept))
    assert thin.nnz == round(kept * matrix.nnz)
    assert np.asarray(matrix[thin.nonzero()]).min() >= np.sort(matrix.data)[-thin.nnz]
    some = np.asarray((thin != 0).sum(1)).ravel() > 0
    assert np.allclose(np.asarray(thin.sum(1)).ravel()[some], np.asarray(matrix.sum(1)).ravel()[some])


@pytest.mark.parametrize("kept", [0.1, 0.5])
def test_features_of_both_signs_are_truncated(kept):
    matrix = np.random.default_rng(3).standard_normal((30, 20))
    least = np.sort(np.abs(matrix).ravel())[-round(kept * matrix.size)]
    assert np.array_equal(thinned(matrix, kept).toarray(), np.where(np.abs(matrix) >= least, matrix, 0.0))


def test_the_largest_entry_stays_and_nothing_is_thinned_to_nothing():
    matrix = sp.csr_matrix(np.array([[1.0, 3.0], [0.0, 2.0]]))
    assert thinned(matrix, 1e-9).toarray().tolist() == [[0.0, 4.0], [0.0, 0.0]]
    assert thinned(sp.csr_matrix((2, 2)), 0.5).nnz == 0


def test_options_are_checked():
    with pytest.raises(ValueError, match="`kept` must be in"):
        NodeClassification("sbm", spaces=Spaces(kept=0.0))
    with pytest.raises(ValueError, match="`grades` must be 1 for clustering=features"):
        NodeClassification("sbm", spaces=Spaces(clustering="features", grades=2))


def test_composite_models_take_similar_clusters():
    problem = NodeClassification("sbm", spaces=Spaces(clustering="features"), network=Network(dropout=0.0))
    f, x = problem.objective(), problem.initial(0)
    d = problem.decomposition(2, 1)
    g = f.gradient(x)
    local = d.models(f, x, g)
    assert torch.allclose(local.gradient(d.gather(x)), g.expand(2, -1), rtol=1e-9, atol=1e-13)
