"""Grids: interpolation, coarse bounds, hierarchies, and how rectangles are cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mldd.algebra import Bounds, MatrixTransfer, Truncated
from mldd.problems.grids import Bratu, Membrane, MinimalSurface, Obstacle, Quadratic
from mldd.problems.grids.grid import Grid, GridTransfer
from mldd.problems.grids.grid_windows import grid_decomposition

SIDES = [(False,) * 4, (True, True, False, True), (True, False, False, True), (True,) * 4]
# n = 3 and 7 take the dense factors, 65 and 127 the slices.
GRIDS = [Grid(n, 2, sides) for sides in SIDES for n in (3, 7, 65)]
GRIDS += [Grid(n, 1, sides) for n in (3, 65) for sides in ((False, False), (True, False), (False, True), (True, True))]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hats(grid: Grid, k: int) -> Tensor:
    """Return the matrix of linear interpolation along axis `k`, from the definition of hat functions."""
    fine, coarse = grid.axis(k), grid.coarser().axis(k)
    return (1.0 - (fine[:, None] - coarse[None, :]).abs() / grid.coarser().h).clamp_min(0.0)


def matrix(grid: Grid) -> Tensor:
    return hats(grid, 0) if grid.dim == 1 else torch.kron(hats(grid, 0), hats(grid, 1))


def label(grid: Grid) -> str:
    return f"{grid.dim}d-{grid.n}-" + "".join("n" if side else "o" for side in grid.natural)


@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_transfers_are_those_of_hat_functions(grid: Grid) -> None:
    transfer = GridTransfer(grid)
    n, m = transfer.shape
    e, g = randn(m, seed=1), randn(n, seed=2)
    torch.testing.assert_close(torch.dot(transfer.prolong(e), g), torch.dot(e, transfer.restrict(g)))
    torch.testing.assert_close(transfer.inject(transfer.prolong(e)), e)
    if n < 200:
        P = matrix(grid)
        torch.testing.assert_close(transfer.prolong(e), P @ e)
        torch.testing.assert_close(transfer.restrict(g), P.T @ g)
    else:  # interpolation is exact for linear functions, but next to open sides
        fine, coarse = ([a.axis(k) for k in range(a.dim)] for a in (grid, grid.coarser()))
        up = transfer.prolong((2.0 * coarse[0] if grid.dim == 1 else coarse[0][:, None] - 3.0 * coarse[1]).flatten())
        expected = 2.0 * fine[0] if grid.dim == 1 else fine[0][:, None] - 3.0 * fine[1]
        inside = (slice(1, -1),) * grid.dim
        torch.testing.assert_close(up.view(grid.shape)[inside], expected[inside])


@pytest.mark.parametrize("grid", [Grid(3), Grid(7), Grid(7, 1)], ids=label)
def test_transfers_of_fourth_order_are_those_of_cubic_b_splines(grid: Grid) -> None:
    """Of the subdivision (1 4 6 4 1) / 8 of such splines, and bounds over all nodes where one of them is not zero."""
    line = torch.zeros(grid.n, grid.coarser().n, dtype=torch.float64)
    for j in range(line.shape[1]):
        for k, value in enumerate((1, 4, 6, 4, 1), -2):
            if 0 <= 2 * j + 1 + k < grid.n:
                line[2 * j + 1 + k, j] = value / 8
    P = line if grid.dim == 1 else torch.kron(line, line)
    transfer = GridTransfer(grid, splines=True)
    e, g = randn(P.shape[1], seed=1), randn(P.shape[0], seed=2)
    torch.testing.assert_close(transfer.prolong(e), P @ e)
    torch.testing.assert_close(transfer.restrict(g), P.T @ g)
    found = transfer.restrict_bounds(Bounds(-g.abs(), g.square()))
    lower, upper = torch.where(P > 0, -g.abs()[:, None], -torch.inf), torch.where(P > 0, g.square()[:, None], torch.inf)
    assert torch.equal(found.lower, lower.amax(0)) and torch.equal(found.upper, upper.amin(0))
    with pytest.raises(ValueError, match="`splines` needs a grid without natural sides"):
        GridTransfer(Grid(3, 2, (True, False, False, False)), splines=True)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.n <= 7], ids=label)
@pytest.mark.parametrize("rule", ["kornhuber", "gelman-mandel"])
def test_coarse_bounds_are_those_of_the_matrix(grid: Grid, rule: str) -> None:
    transfer = GridTransfer(grid)
    lower, upper = -randn(grid.size, seed=3).abs(), randn(grid.size, seed=4).abs()
    lower[::5], upper[::7] = -torch.inf, torch.inf
    bounds = Bounds(lower.clone(), upper.clone())
    got = transfer.restrict_bounds(bounds, rule)  # type: ignore[arg-type]
    expected = MatrixTransfer(matrix(grid).to_sparse()).restrict_bounds(bounds, rule)  # type: ignore[arg-type]
    torch.testing.assert_close(got.lower, expected.lower)
    torch.testing.assert_close(got.upper, expected.upper)
    assert torch.equal(bounds.lower, lower) and torch.equal(bounds.upper, upper), "must not write to its argument"
    free = transfer.restrict_bounds(Bounds.free(grid.size), rule)  # type: ignore[arg-type]
    assert free.is_free and free.lower.shape == (transfer.shape[1],)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GRIDS), st.integers(0, 10**6), st.booleans())
def test_corrections_in_the_coarse_box_stay_feasible(grid: Grid, seed: int, truncated: bool) -> None:
    x, width = randn(grid.size, seed=seed), randn(2, grid.size, seed=seed + 1).abs()
    width[:, :: 2 + seed % 7] = 0.0
    width[0, ::3] = torch.inf
    bounds = Bounds(x - width[0], x + width[1])
    shifted = bounds.shifted(x)
    active = (shifted.lower == 0) | (shifted.upper == 0)
    transfer = Truncated(GridTransfer(grid), active) if truncated else GridTransfer(grid)
    coarse = transfer.restrict_bounds(shifted)
    assert bool((coarse.lower <= 0).all()) and bool((coarse.upper >= 0).all())
    e = coarse.project(2.0 * randn(transfer.shape[1], seed=seed + 2))
    moved = transfer.prolong(e)
    assert bounds.violation(x + moved) <= 1e-12
    assert not truncated or not bool(moved[active].any())


@pytest.mark.parametrize("n", [31, 131])
def test_results_do_not_share_memory_with_arguments(n: int) -> None:
    transfer = GridTransfer(Grid(n))
    g, e = randn(transfer.shape[0]), randn(transfer.shape[1])
    kept = g.clone(), e.clone()
    for out in (transfer.prolong(e), transfer.restrict(g), transfer.inject(g)):
        assert out.is_contiguous()
        out.zero_()
    for bound in vars(transfer.restrict_bounds(Bounds(g, g))).values():
        if isinstance(bound, Tensor):
            bound.zero_()
    assert torch.equal(g, kept[0]) and torch.equal(e, kept[1])


def test_coarse_energies_of_the_interval_are_galerkin() -> None:
    """P1 on the interval: P^T A P is the coarse matrix, exactly."""
    levels = Quadratic(n=63, dim=1).hierarchy(6).levels
    for fine, coarse in zip(levels, levels[1:], strict=False):
        assert coarse.transfer is not None
        n, m = coarse.transfer.shape
        A, A_H = (
            level.objective.hessian_product(torch.zeros(k).double(), torch.eye(k, dtype=torch.float64))  # type: ignore[attr-defined]
            for level, k in ((fine, n), (coarse, m))
        )
        P = torch.stack([coarse.transfer.prolong(e) for e in torch.eye(m, dtype=torch.float64)], 1)
        torch.testing.assert_close(P.T @ A @ P, A_H, rtol=0.0, atol=1e-15)


@pytest.mark.parametrize(
    "problem", [Obstacle(n=63), Quadratic(n=127), Membrane(n=63), MinimalSurface(n=63), Bratu(n=63)]
)
def test_coarse_energies_are_consistent(problem: Obstacle) -> None:
    """The coarse gradient of a smooth function is the restricted fine gradient up to the discretisation error."""
    hierarchy = problem.hierarchy(2)
    fine, coarse = hierarchy[0].objective, hierarchy[1].objective
    transfer, grid = hierarchy[1].transfer, problem.grid()
    assert transfer is not None
    x, y = grid.points()
    u = (0.1 * torch.sin(torch.pi * x / 2) * (2.0 - x) * (torch.sin(torch.pi * y) + 0.2 * y * (1 - y))).expand(
        grid.shape
    )
    u = (u * (1.0 - x) if not any(grid.natural) else u).reshape(-1)
    down, g = transfer.restrict(fine.gradient(u)), coarse.gradient(transfer.inject(u))
    inner = tuple(slice(2, -2) for _ in grid.shape)
    shape = grid.coarser().shape
    difference = (down - g).view(shape)[inner].abs().max()
    assert float(difference) <= 0.02 * float(g.view(shape)[inner].abs().max())
    if isinstance(problem, MinimalSurface):
        return  # u does not fit its boundary values: the jump's area depends on h
    rise, expected = (h.value(v) - h.value(torch.zeros_like(v)) for h, v in ((coarse, transfer.inject(u)), (fine, u)))
    assert float(rise) == pytest.approx(float(expected), rel=2e-2)


def test_the_hierarchy_of_the_obstacle() -> None:
    hierarchy = Obstacle(n=63).hierarchy(6)
    assert [level.objective.size for level in hierarchy.levels] == [3969, 961, 225, 49, 9, 1]
    assert hierarchy[1].work == pytest.approx(961 / 3969)
    assert "3969" in str(hierarchy) and "GridTransfer" in str(hierarchy)
    assert len(Obstacle(n=64).hierarchy(1)) == 1


def test_coarsening_by_four_and_eight() -> None:
    by_four = Obstacle(n=63).hierarchy(3, coarsen=4)
    assert [level.objective.size for level in by_four.levels] == [63**2, 15**2, 3**2]
    transfer = by_four[1].transfer
    assert transfer is not None
    g, e = randn(63**2), randn(15**2, seed=1)
    torch.testing.assert_close(torch.dot(transfer.prolong(e), g), torch.dot(e, transfer.restrict(g)))
    assert [level.objective.size for level in Obstacle(n=63).hierarchy(2, coarsen=8).levels] == [63**2, 7**2]


@pytest.mark.parametrize(
    ("n", "levels", "coarsen", "message"),
    [
        (63, 7, 2, r"`levels` must be <= 6 for n=63 .*got 7; n=127 has 7"),
        (64, 2, 2, r"`levels` must be <= 1 for n=64 .*got 2; n=63 has 2"),
        (21, 3, 2, r"`levels` must be <= 2 for n=21 .*got 3; n=23 has 3"),
        (63, 4, 4, r"`levels` must be <= 3 for n=63 .*got 4; n=127 has 4"),
        (63, 0, 2, "`levels` must be >= 1, got 0"),
        (63, 2, 3, "`coarsen` must be a power of two >= 2, got 3"),
        (63, 2, 1, "`coarsen` must be a power of two >= 2, got 1"),
    ],
)
def test_impossible_hierarchies_are_refused(n: int, levels: int, coarsen: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Obstacle(n=n).hierarchy(levels, coarsen)


@pytest.mark.parametrize(("n", "levels", "near"), [(64, 2, 63), (21, 3, 23), (5, 9, 511)])
def test_the_suggested_n_has_the_levels(n: int, levels: int, near: int) -> None:
    with pytest.raises(ValueError, match=f"n={near} has {levels}"):
        Obstacle(n=n).hierarchy(levels)
    assert len(Obstacle(n=near).hierarchy(levels)) == levels


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="`n` must be >= 1"):
        Grid(0)
    with pytest.raises(ValueError, match="`dim` must be 1 or 2, got 3"):
        Grid(5, 3)
    for n in (1, 4):
        with pytest.raises(ValueError, match=f"odd and >= 3, got {n}"):
            GridTransfer(Grid(n))


def test_intervals_are_cut_at_the_floors_of_linspace() -> None:
    subdomains = grid_decomposition(Grid(255, 1), 2, 2).subdomains
    assert [(int(s.indices[0]), int(s.indices[-1])) for s in subdomains] == [(0, 128), (125, 254)]
    owned = [int(s.owned.sum()) for s in grid_decomposition(Grid(255, 1), 4).subdomains]
    assert owned == [63, 64, 64, 64]


@pytest.mark.parametrize(
    ("parts", "shape"), [(4, (2, 2)), (6, (2, 3)), (12, (3, 4)), (7, (1, 7)), (16, (4, 4)), (1, (1, 1))]
)
def test_parts_are_as_near_to_a_square_as_they_can_be(parts: int, shape: tuple[int, int]) -> None:
    decomposition = grid_decomposition(Grid(12), parts, 0)
    rows = {int(s.indices[0]) // 12 for s in decomposition.subdomains}
    columns = {int(s.indices[0]) % 12 for s in decomposition.subdomains}
    assert (len(rows), len(columns)) == shape and decomposition.parts == parts


def test_overlap_adds_layers_on_every_side() -> None:
    decomposition = grid_decomposition(Grid(12), 9, 2)
    middle = decomposition.subdomains[4]
    assert middle.indices.tolist() == [12 * i + j for i in range(2, 10) for j in range(2, 10)]
    assert middle.indices[middle.owned].tolist() == [12 * i + j for i in range(4, 8) for j in range(4, 8)]
    assert int(decomposition.multiplicity.max()) == 4
    for k, subdomain in enumerate(decomposition.subdomains):  # windows hold what the records say
        assert decomposition.indices[k][decomposition.valid[k]].tolist() == subdomain.indices.tolist()
        assert torch.equal(decomposition.owned[k][decomposition.valid[k]], subdomain.owned)


@pytest.mark.parametrize(
    ("grid", "parts", "overlap", "message"),
    [
        (Grid(3), 10, 1, "`parts` must be <= 9 .the number of unknowns., got 10"),
        (Grid(3), 7, 1, "`parts` = 7 = 1 x 7 rectangles .*got a grid of 3 x 3; use fewer"),
        (Grid(3), 0, 1, "`parts` must be >= 1, got 0"),
        (Grid(3), 4, -1, "`overlap` must be >= 0, got -1"),
        (Grid(3, 1), 4, 1, "`parts` must be <= 3"),
    ],
)
def test_impossible_decompositions_are_refused(grid: Grid, parts: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_decomposition(grid, parts, overlap)


@pytest.mark.parametrize("n", [7, 127])
def test_transfers_and_decompositions_stay_on_the_device(n: int) -> None:
    transfer = GridTransfer(Grid(n))
    for device in ("cpu", "meta"):
        e = torch.empty(transfer.shape[1], dtype=torch.float32, device=device)
        g = torch.empty(transfer.shape[0], dtype=torch.float32, device=device)
        coarse = transfer.restrict_bounds(Bounds(g, g))
        for out in (transfer.prolong(e), transfer.restrict(g), transfer.inject(g), coarse.lower, coarse.upper):
            assert out.dtype == torch.float32 and out.device.type == device
