"""Decompositions: partitions of unity, local models, the order of subdomains, and rates of linear Schwarz methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Corrected,
    Decomposition,
    IndexTransfer,
    LocalRestrictions,
    Remembered,
    Restricted,
    SharedDecomposition,
    Subdomain,
    contiguous,
    counting,
    index_decomposition,
    split,
)
from mldd.problems.grids import Bratu, Ignition, Membrane, MinimalSurface, MoreBV, Obstacle, Quadratic

PROBLEMS = [
    Quadratic(n=17, dim=1),
    Quadratic(n=9),
    Obstacle(n=10),
    Membrane(n=7),
    MinimalSurface(n=9),
    Bratu(n=8),
    Ignition(n=9),
    MoreBV(n=8),
]
KINDS = ("asm", "ras", "wasm")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def total(decomposition: Decomposition, kind: str, x: Tensor) -> Tensor:
    return decomposition.scatter(decomposition.weights(kind) * decomposition.gather(x))  # type: ignore[arg-type]


def name(problem: object) -> str:
    return type(problem).__name__


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("parts", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=name)
def test_ras_and_wasm_are_partitions_of_unity(problem: Obstacle, parts: int, overlap: int) -> None:
    decomposition = problem.decomposition(parts, overlap)
    x = randn(problem.objective().size)
    for kind in ("ras", "wasm"):
        torch.testing.assert_close(total(decomposition, kind, x), x)
    torch.testing.assert_close(total(decomposition, "asm", x), x * decomposition.multiplicity)
    if overlap == 0:  # D3: disjoint subdomains
        for kind in KINDS:
            assert torch.equal(total(decomposition, kind, x), x)


@pytest.mark.parametrize("parts, overlap", [(1, 1), (4, 0), (4, 1), (6, 3), (7, 2)])
@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_local_models_are_restrictions_of_the_whole(problem: Obstacle, parts: int, overlap: int) -> None:
    f, decomposition = problem.objective(), problem.decomposition(parts, overlap)
    x = 0.2 * randn(f.size)
    local, whole = decomposition.models(f, x, None), LocalRestrictions(f, decomposition, x)
    start = decomposition.gather(x)
    y, z = (start + 0.2 * randn(*start.shape, seed=k) * decomposition.valid for k in (1, 2))
    # D3: at the start the local gradients are parts of the gradient.
    torch.testing.assert_close(local.gradient(start), decomposition.gather(f.gradient(x)) * decomposition.valid)
    torch.testing.assert_close(local.gradient(y), whole.gradient(y))
    torch.testing.assert_close(local.value(y) - local.value(z), whole.value(y) - whole.value(z), rtol=1e-9, atol=1e-9)
    for mine, plain in ((local.bounds.lower, whole.bounds.lower), (local.bounds.upper, whole.bounds.upper)):
        assert torch.equal(mine[decomposition.valid], plain[decomposition.valid])
    for models in (local, whole):  # padding must not move
        if models.bounds.is_free:
            assert bool((models.gradient(y)[~decomposition.valid] == 0).all())
        else:
            assert bool((models.bounds.lower == models.bounds.upper)[~decomposition.valid].all())


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if not isinstance(p, MoreBV)], ids=name)
def test_local_curvature_agrees_with_differences_of_local_gradients(problem: Obstacle) -> None:
    f, decomposition = problem.objective(), problem.decomposition(4, 1)
    x = 0.2 * randn(f.size)
    local, y = decomposition.models(f, x, None), decomposition.gather(x)
    v = randn(*y.shape, seed=3)
    inside = v * decomposition.valid
    along = (local.gradient(y + 1e-6 * inside) - local.gradient(y - 1e-6 * inside)) / 2e-6
    torch.testing.assert_close(local.hessian_product(y, v), along, rtol=1e-6, atol=1e-7)  # type: ignore[attr-defined]
    diagonal = local.hessian_diagonal(y)  # type: ignore[attr-defined]
    expected = decomposition.gather(f.hessian_diagonal(x))
    torch.testing.assert_close(diagonal[decomposition.valid], expected[decomposition.valid])
    value, gradient = local.value_and_gradient(y)  # type: ignore[attr-defined]
    torch.testing.assert_close(value, local.value(y))
    torch.testing.assert_close(gradient, local.gradient(y))


def test_compositions_are_cut_into_windows_or_restricted_as_a_whole() -> None:
    f, problem = Obstacle(n=9).objective(), Obstacle(n=9)
    decomposition, x = problem.decomposition(4, 1), randn(81)
    y = decomposition.gather(x) + 0.1 * randn(*decomposition.indices.shape, seed=1) * decomposition.valid
    corrected = Corrected(f, randn(81, seed=2), randn(81, seed=3), Bounds(x - 1.0, x + 2.0))
    for whole in (Remembered(f), corrected, Remembered(corrected)):
        local, plain = decomposition.models(whole, x, None), LocalRestrictions(whole, decomposition, x)
        assert hasattr(local, "hessian_product")
        torch.testing.assert_close(local.gradient(y), plain.gradient(y))
        assert torch.equal(local.bounds.lower, plain.bounds.lower)
    everything = IndexTransfer(torch.arange(81), 81)
    assert isinstance(decomposition.models(Restricted(f, x, everything), x, None), LocalRestrictions)


def test_local_work_is_the_share_of_the_unknowns() -> None:
    problem = MinimalSurface(n=9)
    f, decomposition = problem.objective(), problem.decomposition(4, 1)
    x = problem.initial()
    local = decomposition.models(f, x, None)
    with counting() as cost:
        local.gradient(decomposition.gather(x))
    share = int(decomposition.valid.sum()) / f.size
    assert (cost.gradients, cost.work) == (0, pytest.approx(share))
    with counting() as cost:
        LocalRestrictions(f, decomposition, x).gradient(decomposition.gather(x))
    assert cost.gradients == 0 and cost.work > 0


def test_the_order_and_the_holders_of_subdomains_do_not_matter() -> None:
    """D4: the sum of corrections is the same for permuted subdomains and for subdomains shared by ranks."""
    problem = Obstacle(n=12)
    f, whole, x = problem.objective(), problem.decomposition(9, 1), randn(144)

    def corrections(decomposition: Decomposition) -> Tensor:
        y = decomposition.gather(x)
        step = decomposition.models(f, x, None).gradient(y)
        return decomposition.scatter(decomposition.weights("wasm") * step)

    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    permuted = index_decomposition(f, [whole.subdomains[k] for k in order])
    torch.testing.assert_close(corrections(permuted), corrections(whole))

    class Ranks:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def share(self, parts: int) -> range:
            return range(self.rank * parts // 4, (self.rank + 1) * parts // 4)

    pieces = [corrections(problem.decomposition(9, 1, Ranks(rank))) for rank in range(4)]  # type: ignore[arg-type]
    torch.testing.assert_close(sum(pieces), corrections(whole))


def test_a_rank_without_subdomains_has_empty_batches() -> None:
    class Idle:
        def share(self, parts: int) -> range:
            return range(parts, parts)

    problem = Obstacle(n=6)
    decomposition, x = problem.decomposition(4, 1, Idle()), problem.initial()  # type: ignore[arg-type]
    local = decomposition.models(problem.objective(), x, None)
    y = decomposition.gather(x)
    assert len(y) == 0 and local.gradient(y).shape == y.shape
    assert torch.equal(decomposition.scatter(local.gradient(y)), torch.zeros(36, dtype=torch.float64))


def dense_schwarz(parts: int, n: int = 255) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return A, the preconditioners of ASM and RAS from the decomposition's records, and hats at the interfaces."""
    problem = Quadratic(n=n, dim=1)
    decomposition, f = problem.decomposition(parts, 2), problem.objective()
    A = f.hessian_product(torch.zeros(n).double(), torch.eye(n, dtype=torch.float64))  # type: ignore[attr-defined]
    inverses = {kind: torch.zeros_like(A) for kind in ("asm", "ras")}
    for k in range(parts):
        valid = decomposition.valid[k]
        indices = decomposition.indices[k][valid]
        inverse = torch.linalg.inv(A[indices][:, indices])
        for kind, M in inverses.items():
            weight = decomposition.weights(kind)[k][valid]  # type: ignore[arg-type]
            M[indices[:, None], indices] += weight[:, None] * inverse
    knots = [0.0, *(k * n // parts + 1.0 for k in range(1, parts)), n + 1.0]
    at = torch.arange(1, n + 1).double()
    hats = [
        torch.minimum((at - low) / (peak - low), (high - at) / (high - peak)).clamp_min(0.0)
        for low, peak, high in zip(knots, knots[1:], knots[2:], strict=False)
    ]
    return A, inverses, torch.stack(hats, 1)


def radius(E: Tensor) -> float:
    return float(torch.linalg.eigvals(E).abs().max())


@pytest.mark.parametrize(
    "parts, ras, two_level", [(2, 0.9617, 0.9542), (4, 0.9774, 0.9526), (8, 0.9882, 0.9350), (16, 0.9940, 0.8901)]
)
def test_rates_of_linear_schwarz_methods(parts: int, ras: float, two_level: float) -> None:
    A, inverses, P = dense_schwarz(parts)
    identity = torch.eye(len(A), dtype=torch.float64)
    one = identity - inverses["ras"] @ A
    assert radius(one) == pytest.approx(ras, abs=6e-5)
    assert radius(identity - inverses["asm"] @ A) == pytest.approx(1.0, abs=6e-5)
    coarse = identity - P @ torch.linalg.solve(P.T @ A @ P, P.T @ A)
    assert radius(one @ coarse) == pytest.approx(two_level, abs=6e-5)


def test_two_intervals_contract_as_the_formula_says() -> None:
    """L1: sqrt(alpha (1 - beta) / (beta (1 - alpha))) with interfaces at alpha and beta."""
    alpha, beta = 125 / 256, 130 / 256
    A, inverses, _ = dense_schwarz(2)
    expected = (alpha * (1 - beta) / (beta * (1 - alpha))) ** 0.5
    assert radius(torch.eye(255, dtype=torch.float64) - inverses["ras"] @ A) == pytest.approx(expected, abs=1e-9)


def test_contiguous_blocks_are_widened_by_blocks() -> None:
    subdomains = contiguous([2, 3, 1, 4], parts=2, overlap=1)
    assert [s.indices.tolist() for s in subdomains] == [list(range(6)), list(range(2, 10))]
    assert [s.indices[s.owned].tolist() for s in subdomains] == [list(range(5)), list(range(5, 10))]


def test_padding_of_the_core_repeats_the_first_index() -> None:
    f = Obstacle(n=3).objective()
    decomposition = index_decomposition(f, contiguous([2, 3, 4], parts=3))
    assert decomposition.indices[0].tolist() == [0, 1, 0, 0] and decomposition.valid[0].tolist() == [
        True,
        True,
        False,
        False,
    ]
    x = randn(9)
    y = decomposition.gather(x) + 1.0
    local = decomposition.models(f, x, None)
    moved = x.clone()
    moved[:2] += 1.0
    expected = torch.cat([f.gradient(moved)[:2], torch.zeros(2).double()])
    torch.testing.assert_close(local.gradient(y)[0], expected)
    torch.testing.assert_close(local.value(y)[0], f.value(moved))
    spread = decomposition.spread(decomposition.valid * y)
    assert spread.shape == (3, 9) and torch.equal(spread.sum(0), x + 1.0)
    transfer = decomposition.transfer(2)
    assert transfer.shape == (9, 4) and transfer.inject(x).tolist() == x[5:].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": 5}, "`parts` must be between 1 and 3"),
        ({"parts": 0}, "`parts` must be between 1 and 3"),
        ({"parts": 2, "overlap": -1}, "`overlap` must be >= 0, got -1"),
    ],
)
def test_bad_runs_of_blocks_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contiguous([1, 2, 3], **arguments)


def test_broken_decompositions_are_refused() -> None:
    def part(indices: list[int], owned: list[bool]) -> Subdomain:
        return Subdomain(torch.tensor(indices, dtype=torch.int64), torch.tensor(owned, dtype=torch.bool))

    def make(*subdomains: Subdomain) -> Decomposition:
        return Decomposition(3, subdomains, lambda f, x, g: f)

    with pytest.raises(ValueError, match="got none in number 1; use fewer parts"):
        make(part([0, 1, 2], [True] * 3), part([], []))
    with pytest.raises(ValueError, match="owned by one subdomain, got 0 for unknown 2"):
        make(part([0, 1], [True, True]), part([2], [False]))
    with pytest.raises(ValueError, match="owned by one subdomain, got 2 for unknown 1"):
        make(part([0, 1], [True, True]), part([1, 2], [True, True]))
    with pytest.raises(ValueError, match="`combine` must be one of asm, ras, wasm, got 'mean'"):
        make(part([0, 1, 2], [True] * 3)).weights("mean")  # type: ignore[arg-type]


def test_shared_unknowns_are_partitions_of_unity_too() -> None:
    owner = torch.tensor([0, 1, 1, 2])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]).bool()
    for decomposition in (
        SharedDecomposition(4, 3, lambda f, x, g: f, owner, range(3)),
        SharedDecomposition(4, 3, lambda f, x, g: f, owner, range(3), mask),
    ):
        x = randn(4)
        for kind in ("ras", "wasm"):
            torch.testing.assert_close(total(decomposition, kind, x), x)  # type: ignore[arg-type]
    bounds = decomposition.gather_bounds(Bounds(x - 1.0, x + 1.0), decomposition.gather(x))
    assert torch.equal(bounds.lower == bounds.upper, ~mask)


@pytest.mark.parametrize(
    ("owner", "mask", "message"),
    [
        ([0, 1], None, "`owner` must have shape"),
        ([0, 1, 2], None, r"`owner` must lie in 0..1, got 0..2"),
        ([0, 1, 1], [[True, True, True]], "`mask` must be bool of shape"),
        ([0, 0, 0], [[True, True, True], [False, False, False]], "every subdomain needs an unknown"),
        ([0, 1, 1], [[True, True, True], [False, False, True]], "updated by its owner"),
    ],
)
def test_bad_shared_decompositions_are_refused(owner: list[int], mask: list[list[bool]] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedDecomposition(
            3, 2, lambda f, x, g: f, torch.tensor(owner), range(2), None if mask is None else torch.tensor(mask)
        )


def test_layers_are_split_evenly_by_their_unknowns() -> None:
    def sizes(blocks: list[int], parts: int) -> list[int]:
        return [int(s.owned.sum()) for s in contiguous(blocks, parts)]

    assert sizes([2] * 6, 3) == [4, 4, 4]
    assert sizes([800, 1050, 130, 1], 2) == [800, 1181]
    assert sizes([1, 1, 1000], 3) == [1, 1, 1000]
    assert sizes([1000, 1, 1], 3) == [1000, 1, 1]
    assert sizes([7], 1) == [7]


def test_rows_are_split_by_layers() -> None:
    rows, blocks = randn(2, 5), (slice(0, 2), slice(2, 5))
    pieces = split(rows, blocks)
    assert pieces.shape == (4, 5)
    torch.testing.assert_close(pieces[:2] + pieces[2:], rows)
    assert bool((pieces[:2, 2:] == 0).all() and (pieces[2:, :2] == 0).all())
    assert torch.equal(split(rows, (slice(None),)), rows)
