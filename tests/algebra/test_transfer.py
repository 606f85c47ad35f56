"""Transfers: P and R are transposes, iterates are injected, and coarse bounds keep fine iterates feasible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mldd.algebra import Bounds, Compose, Identity, IndexTransfer, MatrixTransfer, Transfer, Truncated


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def averaging(n: int, m: int, seed: int, sparse: bool = True) -> MatrixTransfer:
    """Return a random P >= 0 with row sums at most one and some zero entries."""
    P = randn(n, m, seed=seed).clamp_min(0.0)
    P = P / P.sum(1, keepdim=True).clamp_min(1.0)
    return MatrixTransfer(P.to_sparse().coalesce() if sparse else P)


def signed(n: int, m: int, seed: int) -> MatrixTransfer:
    P = randn(n, m, seed=seed)
    return MatrixTransfer(torch.where(P.abs() < 0.5, 0.0, P).to_sparse().coalesce())


def feasible(n: int, seed: int) -> tuple[Tensor, Bounds]:
    """Return a point and bounds around it, some tight, some infinite, some with equal sides."""
    x, width = randn(n, seed=seed), randn(2, n, seed=seed + 1).abs()
    width[:, ::4] = 0.0
    width[0, 1::4] = torch.inf
    width[1, 2::4] = torch.inf
    return x, Bounds(x - width[0], x + width[1])


def into(bounds: Bounds, seed: int) -> Tensor:
    """Return a random point of the box, often at its sides."""
    return bounds.project(randn(len(bounds.lower), seed=seed) * 3.0)


TRANSFERS: dict[str, Transfer] = {
    "identity": Identity(6),
    "indices": IndexTransfer(torch.tensor([4, 0, 2]), 6),
    "sparse": averaging(6, 3, 1),
    "dense": averaging(6, 3, 1, sparse=False),
    "signed": signed(6, 3, 2),
    "composed": Compose(averaging(6, 4, 3), averaging(4, 2, 4)),
    "truncated": Truncated(averaging(6, 3, 5), torch.tensor([True, False, False, True, False, False])),
}


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=TRANSFERS.keys())
def test_restriction_is_the_transpose_of_prolongation(transfer: Transfer) -> None:
    n, m = transfer.shape
    e, g = randn(m, seed=7), randn(n, seed=8)
    assert transfer.prolong(e).shape == (n,) and transfer.restrict(g).shape == (m,)
    assert transfer.inject(g).shape == (m,)
    assert torch.dot(transfer.prolong(e), g).item() == pytest.approx(
        torch.dot(e, transfer.restrict(g)).item(), abs=1e-12
    )


def test_composition_multiplies() -> None:
    fine, coarse = averaging(6, 4, 3), averaging(4, 2, 4)
    expected = fine.matrix.to_dense() @ coarse.matrix.to_dense()
    got = torch.stack([Compose(fine, coarse).prolong(e) for e in torch.eye(2, dtype=torch.float64)], 1)
    torch.testing.assert_close(got, expected)


def test_injection_undoes_prolongation_for_disjoint_columns() -> None:
    P = torch.zeros(5, 2, dtype=torch.float64)
    P[[0, 1], 0], P[[2, 4], 1] = 2.0, -1.0
    e = randn(2)
    for matrix in (P, P.to_sparse().coalesce()):
        torch.testing.assert_close(MatrixTransfer(matrix).inject(MatrixTransfer(matrix).prolong(e)), e)
    given_injection = MatrixTransfer(P, torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.float64))
    assert given_injection.inject(torch.arange(5, dtype=torch.float64)).tolist() == [0.0, 4.0]


def test_injections_are_copies() -> None:
    x = randn(6)
    for transfer in (Identity(6), IndexTransfer(torch.arange(6), 6)):
        transfer.inject(x).zero_()
    assert float(x.abs().sum()) > 0


def test_kornhuber_takes_maximum_and_minimum_over_the_support() -> None:
    P = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    bounds = Bounds(torch.tensor([-3.0, -2.0, -torch.inf]).double(), torch.tensor([1.0, 2.0, 0.5]).double())
    coarse = MatrixTransfer(P).restrict_bounds(bounds)
    assert coarse.lower.tolist() == [-2.0, -2.0] and coarse.upper.tolist() == [1.0, 0.5]
    gelman = MatrixTransfer(P).restrict_bounds(bounds, "gelman-mandel")
    assert gelman.lower.tolist() == [-2.0, -2.0] and gelman.upper.tolist() == [0.5, 0.5]


def test_stored_zeros_are_not_in_the_support() -> None:
    entries = torch.tensor([[0, 1], [0, 0]]), torch.tensor([1.0, 0.0])
    P = torch.sparse_coo_tensor(*entries, (2, 1), check_invariants=True).coalesce()
    coarse = MatrixTransfer(P).restrict_bounds(Bounds(torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 1.0])))
    assert coarse.lower.tolist() == [-2.0] and coarse.upper.tolist() == [2.0]


@pytest.mark.parametrize("transfer", [signed(6, 3, 2), MatrixTransfer(2.0 * torch.eye(3, dtype=torch.float64))])
def test_kornhuber_refuses_what_it_cannot_serve(transfer: MatrixTransfer) -> None:
    _, bounds = feasible(transfer.shape[0], 0)
    with pytest.raises(ValueError, match='needs P >= 0 with row sums <= 1; use rule "gelman-mandel"'):
        transfer.restrict_bounds(bounds)


sizes = st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6)


@settings(max_examples=60, deadline=None)
@given(*sizes)
def test_kornhuber_keeps_the_fine_iterate_feasible(n: int, m: int, seed: int) -> None:
    transfer, (x, bounds) = averaging(n, m, seed), feasible(n, seed)
    coarse = transfer.restrict_bounds(bounds.shifted(x))
    assert bool((coarse.lower <= 0).all()) and bool((coarse.upper >= 0).all()), "y0 must lie in the coarse box"
    for k in range(3):
        assert bounds.violation(x + transfer.prolong(into(coarse, seed + k))) <= 1e-12


@settings(max_examples=60, deadline=None)
@given(*sizes)
def test_gelman_mandel_keeps_the_fine_iterate_feasible_for_any_sign(n: int, m: int, seed: int) -> None:
    transfer, (x, bounds) = signed(n, m, seed), feasible(n, seed)
    coarse = transfer.restrict_bounds(bounds.shifted(x), "gelman-mandel")
    assert bool((coarse.lower <= 0).all()) and bool((coarse.upper >= 0).all())
    for k in range(3):
        assert bounds.violation(x + transfer.prolong(into(coarse, seed + k))) <= 1e-12


@settings(max_examples=60, deadline=None)
@given(*sizes)
def test_truncation_freezes_active_unknowns_and_frees_the_others(n: int, m: int, seed: int) -> None:
    plain, (x, bounds) = averaging(n, m, seed), feasible(n, seed)
    shifted = bounds.shifted(x)
    active = (shifted.lower == 0) | (shifted.upper == 0)
    transfer = Truncated(plain, active)
    coarse, kornhuber = transfer.restrict_bounds(shifted), plain.restrict_bounds(shifted)
    assert bool((coarse.lower <= kornhuber.lower).all()) and bool((coarse.upper >= kornhuber.upper).all())
    for k in range(3):
        e = into(coarse, seed + k)
        moved = transfer.prolong(e)
        assert bounds.violation(x + moved) <= 1e-12
        assert not bool(moved[active].any())


@pytest.mark.parametrize("rule", ["kornhuber", "gelman-mandel", "truncated"])
@pytest.mark.parametrize("name", ["identity", "indices", "sparse", "dense", "composed"])
def test_free_bounds_stay_free(name: str, rule: str) -> None:
    transfer = TRANSFERS[name]
    coarse = transfer.restrict_bounds(Bounds.free(transfer.shape[0]), rule)  # type: ignore[arg-type]
    assert coarse.is_free and coarse.lower.shape == (transfer.shape[1],)


def test_subsets_and_the_identity_keep_bounds_for_every_rule() -> None:
    _, bounds = feasible(6, 3)
    picked = IndexTransfer(torch.tensor([4, 0, 2]), 6).restrict_bounds(bounds, "gelman-mandel")
    assert torch.equal(picked.lower, bounds.lower[[4, 0, 2]]) and torch.equal(picked.upper, bounds.upper[[4, 0, 2]])
    assert Identity(6).restrict_bounds(bounds, "gelman-mandel") is bounds


def test_transfers_keep_dtype_and_device() -> None:
    for device in ("cpu", "meta"):
        indices = torch.tensor([4, 0, 2]).to(device)
        transfer = IndexTransfer(indices, 6)
        g = torch.empty(6, dtype=torch.float32, device=device)
        for out in (transfer.restrict(g), transfer.prolong(g[:3]), transfer.inject(g)):
            assert out.dtype == torch.float32 and out.device.type == device
    single = MatrixTransfer(averaging(6, 3, 1).matrix.float())
    assert single.prolong(torch.ones(3)).dtype == torch.float32
    assert single.restrict_bounds(Bounds(-torch.ones(6), torch.ones(6))).lower.dtype == torch.float32
