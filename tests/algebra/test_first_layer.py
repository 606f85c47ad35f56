"""Whitening of a first layer against dense eigenvalues, its inverse, and what it promises of the inputs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from mldd.algebra import FirstLayer, InCoordinates, Price, Remembered, counting, whitening
from tests.helpers import quadratic


def alone(x: Tensor) -> Tensor:
    return x


def decaying(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Inputs whose moments fall fast: a subspace iteration finds the leading ones to many digits."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((inputs, inputs)))
    return rng.standard_normal((rows, inputs)) * 0.7 ** np.arange(inputs) @ Q.T


def layer(Z: np.ndarray, outer: int = 3, *, bias: bool = False, sparse: bool = False) -> FirstLayer:
    size = Z.shape[1] + bias
    return FirstLayer((sp.csr_matrix(Z) if sparse else Z,), torch.arange(size * outer).view(size, outer), 1e4, alone)


def dense(change: object, n: int) -> Tensor:
    """B as a matrix."""
    return change.apply(torch.eye(n, dtype=torch.float64))  # type: ignore[attr-defined]


LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "rank"), [(6, 0), (6, 2), (80, 4)])
def test_the_change_is_symmetric_positive_and_has_its_inverse(inputs: int, rank: int, bias: bool) -> None:
    first = layer(decaying(200, inputs), bias=bias)
    n = first.places.numel() + 5
    change = whitening(first, LIKE, rank=rank)
    B = dense(change, n)
    assert torch.allclose(B, B.mT, atol=1e-12)
    assert float(torch.linalg.eigvalsh(B).min()) > 0
    inverse = change.solve(torch.eye(n, dtype=torch.float64))
    assert torch.allclose(B @ inverse, torch.eye(n, dtype=torch.float64), atol=1e-10)
    assert torch.equal(B[-5:, -5:], torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_subspace_iteration_finds_what_a_dense_decomposition_does(sparse: bool) -> None:
    Z, rank, damping = decaying(300, 90), 5, 0.1
    change = whitening(layer(Z, 1, sparse=sparse), LIKE, rank=rank, damping=damping)
    C = Z.T @ Z / len(Z)
    e, U = np.linalg.eigh(C)
    e, U = e[::-1], U[:, ::-1]
    eps = damping * (e.sum() - e[0]) / 90
    t = e[rank:].sum() / (90 - rank) + eps
    factors = np.concatenate([np.sqrt(t / (e[:rank] + eps)), np.ones(90 - rank)])
    wanted = torch.from_numpy((U * factors) @ U.T)
    assert torch.allclose(dense(change, 90), wanted, atol=1e-5)


def test_full_whitening_without_damping_makes_the_moments_one_number() -> None:
    Z = np.random.default_rng(1).standard_normal((100, 7)) @ np.diag([5, 3, 1, 1, 0.5, 0.2, 0.1]) + 1.0
    change = whitening(layer(Z, 1, bias=True), LIKE, damping=0.0)
    with_ones = np.hstack([Z, np.ones((100, 1))])
    white = with_ones @ dense(change, 8).numpy()
    C = white.T @ white / 100
    assert np.allclose(C, C[0, 0] * np.eye(8), atol=1e-9 * C[0, 0])


def test_the_metric_of_the_bias_scales_the_bias_alone() -> None:
    Z = 0.1 * np.random.default_rng(2).standard_normal((50, 4))
    change = whitening(layer(Z, 2, bias=True), LIKE, metric="bias", damping=0.1)
    mean = (Z**2).sum() / 50 / 4
    eps = 0.1 * mean * 4 / 5
    wanted = torch.ones(10, dtype=torch.float64)
    wanted[8:] = ((mean + eps) / (1 + eps)) ** 0.5
    assert torch.allclose(dense(change, 10), torch.diag(wanted), rtol=1e-12)
    with pytest.raises(ValueError, match="needs a first layer with a bias, got one without"):
        whitening(layer(Z, 2), LIKE, metric="bias")


def test_places_may_be_scattered_and_unknowns_a_batch() -> None:
    Z = decaying(60, 5)
    order = torch.randperm(5 * 3 + 4, generator=torch.Generator().manual_seed(0))
    plain = whitening(layer(Z), LIKE)
    first = FirstLayer((Z,), order[:15].view(5, 3), 1e4, alone)
    scattered = whitening(first, LIKE)
    x = torch.randn(2, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = torch.empty_like(x)
    moved[:, order] = x
    assert torch.allclose(scattered.apply(moved)[:, order], plain.apply(x), rtol=1e-12)
    assert torch.allclose(plain.apply(x)[1], plain.apply(x[1]), rtol=1e-12)


def test_rows_may_be_divided_over_ranks() -> None:
    Z = decaying(120, 70)
    whole = layer(Z, 1, bias=True)
    shares = [layer(Z[:50], 1, bias=True), layer(Z[50:], 1, bias=True)]
    both = np.random.default_rng(0).standard_normal((71, 3))
    assert np.allclose(sum(share.moment(both) for share in shares), whole.moment(both), rtol=1e-10)
    assert sum(share.squares for share in shares) == pytest.approx(whole.squares, rel=1e-12)


def test_what_cannot_be_whitened_is_refused() -> None:
    with pytest.raises(ValueError, match="must vary in all directions to be whitened"):
        whitening(layer(np.ones((10, 3))), LIKE)
    with pytest.raises(ValueError, match="`rank` and `damping` must be >= 0"):
        whitening(layer(decaying(10, 3)), LIKE, damping=-1.0)
    with pytest.raises(ValueError, match="`places` must have a row per input"):
        FirstLayer((np.ones((4, 3)),), torch.arange(10).view(5, 2), 1.0, alone)


def test_gradient_and_product_in_other_coordinates_are_differences_of_values() -> None:
    q = quadratic(18)
    change = whitening(layer(decaying(60, 5)), LIKE)
    f = InCoordinates(q, change)
    v, d = torch.randn(2, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slope = (f.value(v + 1e-4 * d) - f.value(v - 1e-4 * d)) / 2e-4  # exact for a quadratic, but for rounding
    assert float(f.gradient(v) @ d) == pytest.approx(float(slope), rel=1e-7)
    turned = (f.gradient(v + 0.5 * d) - f.gradient(v - 0.5 * d)).clone()
    assert torch.allclose(f.hessian_product(v, d), turned, rtol=1e-8, atol=1e-10)
    value, g = f.value_and_gradient(v)
    assert float(value) == pytest.approx(float(q.value(change.apply(v))), rel=1e-12)
    assert torch.allclose(f.origin(g), q.gradient(change.apply(v)), rtol=1e-10)
    assert torch.allclose(f.origin(g.clone()), q.gradient(change.apply(v)), rtol=1e-8, atol=1e-10)


def test_an_evaluation_takes_two_products_and_what_is_known_none() -> None:
    change = whitening(layer(decaying(60, 5)), LIKE)
    q = quadratic(18)
    f = Remembered(InCoordinates(Remembered(q, True), change), True)
    v = torch.ones(18, dtype=torch.float64)
    assert change.price > 0
    with counting() as cost:
        f.gradient(v)
        f.value(v)
    assert cost.gradients == 1
    assert cost.work == pytest.approx(Price().gradient + 2 * change.price)
    with counting() as again:
        f.gradient(v)
        f.f.value_and_gradient(v.clone())  # the same point in another tensor
    assert again.gradients == 0
    assert again.work == pytest.approx(0.0)
