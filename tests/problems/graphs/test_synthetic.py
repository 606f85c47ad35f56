"""Strips of a grid: together they are the whole, and their labels are what the teacher says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mldd.loop import Stop, minimise
from mldd.problems.data import grid_mesh, joined, shares
from mldd.problems.graphs import Network, Strips, SyntheticClassification, synthetic
from mldd.problems.graphs.synthetic import strip
from mldd.problems.nets.layers import layer_of
from mldd.solvers import Adam


@pytest.mark.parametrize("neighbours", [2, 4, 6, 8, 10, 12])
@pytest.mark.parametrize("ranks", [2, 5, 13])
def test_strips_together_are_the_whole(neighbours: int, ranks: int) -> None:
    whole = strip(13, 7, neighbours, features=5, seed=3)
    parts = [strip(13, 7, neighbours, rank=k, ranks=ranks, features=5, seed=3) for k in range(ranks)]
    together = joined(parts, 1)
    assert np.array_equal(together.numbers, whole.numbers)
    for name in ("labels", "features", "train", "validation", "test"):
        assert np.array_equal(getattr(together.data, name), getattr(whole.data, name)), name
    assert (together.adjacency() != whole.adjacency()).nnz == 0
    assert (whole.adjacency() != grid_mesh(13, 7, neighbours)[0].scipy()).nnz == 0
    assert sum(part.own for part in parts) == 13 * 7 == parts[0].whole.nodes


def test_halo_names_the_owners() -> None:
    parts = [strip(9, 4, 12, rank=k, ranks=6) for k in range(6)]
    ends = np.cumsum([0, *parts[0].whole.sizes])
    for part in parts:
        used = np.unique(part.edges.indices[part.edges.indices >= part.own])
        assert used.tolist() == list(range(part.own, part.own + part.halo.size))
        assert bool((np.diff(part.halo.owner) >= 0).all())
        whole = grid_mesh(9, 4, 12)[0].scipy()[part.numbers]
        numbers = np.concatenate([part.numbers, ends[part.halo.owner] + part.halo.index])
        assert np.array_equal(numbers[part.edges.indices], whole.indices)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_hold_consecutive_strips(ranks: int) -> None:
    """Strips of their own, joined for a rank, are what the rank makes at once."""
    alone = [strip(9, 4, 8, rank=k, ranks=5, features=3) for k in range(5)]
    for rank, group in enumerate(shares(5, ranks)):
        made = strip(9, 4, 8, rank=rank, ranks=ranks, parts=5, features=3)
        expected = joined(alone[group.start : group.stop], ranks)
        for name in ("numbers", "part"):
            assert np.array_equal(getattr(made, name), getattr(expected, name)), name
        assert np.array_equal(made.whole.sizes, expected.whole.sizes)
        columns = [np.append(s.numbers, -1 - (s.halo.owner * 36 + s.halo.index)) for s in (made, expected)]
        assert np.array_equal(columns[0][made.edges.indices], columns[1][expected.edges.indices])


def test_labels_are_those_of_the_teacher() -> None:
    shard = strip(20, 30, 8, features=16, classes=5, seed=2)
    scores = (shard.adjacency() + np.eye(600)) @ (shard.data.features.astype(np.float64) @ synthetic._teacher(2, 16, 5))
    assert np.array_equal(np.asarray(scores).argmax(axis=1), shard.data.labels)
    assert np.bincount(shard.data.labels, minlength=5).min() > 40


def test_features_are_of_mean_zero_and_variance_one_and_not_repeated() -> None:
    x = strip(60, 60, 4, features=20, seed=1).data.features
    assert x.dtype == np.float32
    assert abs(float(x.mean())) < 0.02 and float(x.var()) == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(x[:1000]) - np.eye(1000)).max() < 0.98
    assert not np.array_equal(x, strip(60, 60, 4, features=20, seed=2).data.features)


def test_masks_share_the_nodes() -> None:
    shard = strip(60, 60, 4)
    assert np.array_equal(shard.data.train.astype(int) + shard.data.validation + shard.data.test, np.ones(3600))
    assert shard.data.train.mean() == pytest.approx(0.5, abs=0.03)


def test_loss_is_that_of_dense_matrices() -> None:
    problem = SyntheticClassification(
        strips=Strips(nodes=90, columns=9, degree=8, features=6, classes=3),
        network=Network(hidden=5, dropout=0.0, decay=0.0),
        dtype="float64",
    )
    shard = problem.shard
    A = torch.from_numpy(layer_of("gcn").operator(grid_mesh(10, 9, 8)[0]).toarray())
    x = problem.initial(0) + 0.1
    x.requires_grad_()
    w1, b1, w2, b2 = x.split([30, 5, 15, 3])
    hidden = torch.relu(A @ torch.from_numpy(shard.data.features).double() @ w1.view(6, 5) + b1)
    z = A @ hidden @ w2.view(5, 3) + b2
    train = torch.from_numpy(shard.data.train)
    value = torch.nn.functional.cross_entropy(z[train], torch.from_numpy(shard.data.labels)[train])
    (gradient,) = torch.autograd.grad(value, x)
    found = problem.objective().value_and_gradient(x.detach())
    torch.testing.assert_close(found[0], value.detach(), rtol=1e-6, atol=0)  # features are made in single precision
    torch.testing.assert_close(found[1], gradient, rtol=1e-6, atol=1e-8)


def test_network_learns_what_the_teacher_says() -> None:
    problem = SyntheticClassification(
        strips=Strips(nodes=2000, features=8, classes=3, degree=4),
        network=Network(model="sage", hidden=32, dropout=0.0, decay=0.0),
    )
    start = problem.initial(0)
    result = minimise(problem.objective(), start, Adam(lr=0.05), stop=Stop(max_steps=60))
    assert problem.metrics(start)["test_accuracy"] < 0.6 < 0.8 < problem.metrics(result.x)["test_accuracy"]


@pytest.mark.parametrize(("nodes", "columns", "made"), [(100, 0, 100), (101, 0, 110), (12, 5, 15), (2, 2, 2)])
def test_grid_has_at_least_the_nodes_asked_for(nodes: int, columns: int, made: int) -> None:
    assert SyntheticClassification(strips=Strips(nodes=nodes, columns=columns)).shard.whole.nodes == made


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strip(3, 3, 4, rank=0, ranks=4), "a grid of 3 rows can be cut into 1..3 strips, got rank 0 of 4"),
        (
            lambda: SyntheticClassification(strips=Strips(nodes=1)),
            "`nodes` must be >= 2 and `columns` in 0..1, got 1 and 0",
        ),
        (lambda: SyntheticClassification(network=Network(model="mlp")), "`model` must be one of"),
        (lambda: strip(3, 3, 4, classes=1), "`classes` >= 2"),
        (lambda: strip(3, 3, 4, ranks=2, parts=4), "`parts` must be in 2..3 for 2 ranks and 3 rows, got 4"),
        (lambda: Strips(parts=-1), "`parts` must be >= 0, got -1"),
        (lambda: strip(3, 3, 5), "`neighbours` must be 2, 4, 6, 8, 10 or 12, got 5"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
