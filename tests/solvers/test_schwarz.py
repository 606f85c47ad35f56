"""DD-ADAGB2: the properties D1 to D4, feasibility, the reference counts, and graph subdomains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import Hierarchy, Identity, Level, contiguous, counting, index_decomposition
from mldd.problems.graphs import Network, NodeClassification
from mldd.problems.grids import MinimalSurface, Obstacle
from mldd.ranks import load_petsc
from mldd.solvers import AdaGrad, NonlinearSchwarz, Recursion, SchwarzAdaGrad
from tests.helpers import Quadratic, WithoutValue, quadratic

PLAIN = AdaGrad(curvature="none")
SETTINGS = {"local": AdaGrad(1e-3, 0.1), "local_steps": 4, "global_steps": 0, "combine": "wasm"}


@pytest.fixture(scope="module")
def obstacle() -> Obstacle:
    return Obstacle(n=63)


@pytest.fixture(scope="module")
def sbm() -> NodeClassification:
    return NodeClassification("sbm", network=Network(dropout=0.5))


def has_petsc() -> bool:
    try:
        load_petsc()
    except ImportError:
        return False
    return True


def run(f: object, x: Tensor, solver: SchwarzAdaGrad, steps: int) -> Tensor:
    return minimise(f, x, solver, stop=Stop(steps), values=False).x


def test_one_subdomain_is_so_many_single_level_steps() -> None:
    f, x = quadratic(12, bounded=True), torch.zeros(12, dtype=torch.float64)
    for curvature in ("none", "exact"):
        decomposition = index_decomposition(f, contiguous([12], 1))
        local = AdaGrad(curvature=curvature)
        schwarz = SchwarzAdaGrad(decomposition, local=local, local_steps=3, global_steps=0)
        together = run(f, x, schwarz, 4)
        alone = minimise(f, x, local, stop=Stop(12)).x
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_disjoint_subdomains_are_combined_alike_by_all_weights() -> None:
    f, x = quadratic(12, bounded=True), torch.zeros(12, dtype=torch.float64)
    decomposition = index_decomposition(f, contiguous([3, 3, 3, 3], 4))
    results = [
        run(f, x, SchwarzAdaGrad(decomposition, combine=kind, local=PLAIN), 5) for kind in ("ras", "wasm", "asm")
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_order_of_subdomains_does_not_matter() -> None:
    f, x = quadratic(12, bounded=True), torch.zeros(12, dtype=torch.float64)
    subdomains = contiguous([2] * 6, 3, overlap=1)
    for kind in ("ras", "wasm", "asm"):
        a = run(f, x, SchwarzAdaGrad(index_decomposition(f, subdomains), combine=kind, local=PLAIN), 5)
        b = run(f, x, SchwarzAdaGrad(index_decomposition(f, subdomains[::-1]), combine=kind, local=PLAIN), 5)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_function_value_is_used() -> None:
    f = WithoutValue(quadratic(12, bounded=True))
    decomposition = index_decomposition(f, contiguous([2] * 6, 3, overlap=1))
    with counting() as cost:
        run(f, torch.zeros(12, dtype=torch.float64), SchwarzAdaGrad(decomposition), 3)
    assert cost.values == 0


@pytest.mark.parametrize("kind", ["ras", "wasm", "asm"])
def test_every_combination_is_feasible_before_any_projection(obstacle: Obstacle, kind: str) -> None:
    f, x = obstacle.objective(), obstacle.initial(0)
    solver = SchwarzAdaGrad(obstacle.decomposition(16, 2), combine=kind, global_steps=0)
    state = solver.sweep.init(f, x)
    for _ in range(6):
        x = x + solver.sweep.correction(f, x, state)
        assert f.bounds.violation(x) <= 1e-16
        f.bounds.project(x, out=x)


def test_undamped_asm_is_clipped(obstacle: Obstacle) -> None:
    f = obstacle.objective()
    solver = SchwarzAdaGrad(obstacle.decomposition(16, 1), combine="asm", damping=1.0)
    assert f.bounds.violation(run(f, obstacle.initial(0), solver, 10)) == 0.0


# (subdomains, overlap): most outer steps for RAS, WASM with one level, then with two, of the reference run
COUNTS = {
    (4, 1): ((26, 30), (19, 22)),
    (4, 4): ((22, 30), (15, 22)),
    (16, 2): ((31, 38), (16, 19)),
    (64, 1): ((52, 57), (8, 8)),
    (64, 2): ((42, 54), (8, 8)),
}
COARSEN = {4: 16, 16: 8, 64: 4}


@pytest.mark.parametrize(("parts", "overlap"), COUNTS)
def test_counts_of_the_reference_run(obstacle: Obstacle, parts: int, overlap: int) -> None:
    decomposition = obstacle.decomposition(parts, overlap)
    hierarchies = None, obstacle.hierarchy(2, COARSEN[parts])
    for hierarchy, most in zip(hierarchies, COUNTS[parts, overlap], strict=True):
        for kind, limit in zip(("ras", "wasm"), most, strict=True):
            solver = SchwarzAdaGrad(decomposition, hierarchy=hierarchy, combine=kind)
            result = minimise(obstacle.objective(), obstacle.initial(0), solver, stop=Stop(100, atol=1e-6))
            assert result.status.name == "converged_atol"
            assert result.record.step <= limit
            assert obstacle.objective().bounds.violation(result.x) == 0.0


def test_two_level_counts_do_not_grow_with_the_number_of_subdomains(obstacle: Obstacle) -> None:
    steps = []
    for parts in (4, 64):
        solver = SchwarzAdaGrad(obstacle.decomposition(parts, 2), obstacle.hierarchy(2, COARSEN[parts]))
        result = minimise(obstacle.objective(), obstacle.initial(0), solver, stop=Stop(100, atol=1e-6))
        steps.append(result.record.step)
    assert steps[1] <= steps[0]


def test_steps_with_all_levels_are_bounded_in_subdomains_and_mesh() -> None:
    for problem in (Obstacle(n=31), Obstacle(n=63), MinimalSurface(n=31)):
        hierarchy, settings = problem.hierarchy(problem.n.bit_length() - 2), problem.settings("dd-adagrad")
        coarse = Recursion(model=settings["coarse.model"], nested=settings["coarse.nested"])
        for parts in (4, 16):
            decomposition = problem.decomposition(parts, 2)
            solver = SchwarzAdaGrad(decomposition, hierarchy, coarse=coarse, local_rtol=settings["local_rtol"])
            result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(20, rtol=1e-8))
            assert result.status.name == "converged_rtol"


def test_local_work_counts_the_unknowns_of_all_subdomains(obstacle: Obstacle) -> None:
    decomposition = obstacle.decomposition(16, 2)
    solver = SchwarzAdaGrad(decomposition, local=PLAIN, local_steps=5, global_steps=0)
    result = minimise(obstacle.objective(), obstacle.initial(0), solver, stop=Stop(1))
    # a step of 5 local gradients, and the gradients at the start and at the end
    share = sum(len(s.indices) for s in decomposition.subdomains) / obstacle.objective().size
    assert result.record.cost.work_units == pytest.approx(2 + 5 * share)
    assert result.record.cost.gradient_evaluations == 2
    assert result.record.cost.synchronisations == 1


@pytest.mark.parametrize("settings", [{}, {"levels": 2}, {"levels": 3, "coarse": Recursion(nested=0.5)}])
def test_graph_subdomains_lower_the_loss(sbm: NodeClassification, settings: dict) -> None:
    settings = {**SETTINGS, **settings}
    levels = settings.pop("levels", 1)
    f, x = sbm.objective(), sbm.initial(0)
    solver = SchwarzAdaGrad(sbm.decomposition(4), sbm.hierarchy(levels) if levels > 1 else None, **settings)
    end = run(f, x, solver, 15)
    assert float(f.value(end)) < 0.5 * float(f.value(x))


@pytest.mark.parametrize("solver", [NonlinearSchwarz, SchwarzAdaGrad])
def test_the_numbers_of_parts_do_not_matter(sbm: NodeClassification, solver: Any) -> None:
    f, x = sbm.objective(), sbm.initial(0)
    part = sbm.parts(4)
    ends = []
    for numbers in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]):
        decomposition = sbm.decomposition(torch.tensor(numbers)[part])
        ends.append(float(f.value(run(f, x, solver(decomposition, local_steps=3), 2))))
    assert ends == pytest.approx([ends[0]] * 4, rel=1e-6)


@pytest.mark.parametrize("solver", [NonlinearSchwarz, SchwarzAdaGrad])
def test_ras_of_parts_of_the_graph_is_refused(sbm: NodeClassification, solver: Any) -> None:
    f, x = sbm.objective(), sbm.initial(0)
    with pytest.raises(ValueError, match="combine=ras takes every unknown from its owner.*use combine=wasm"):
        run(f, x, solver(sbm.decomposition(4), combine="ras"), 1)


@pytest.mark.parametrize(("dropout", "levels"), [(0.0, 1), (0.5, 1), (0.5, 2)])
def test_nonlinear_schwarz_on_parts_of_a_graph_lowers_the_loss(
    sbm: NodeClassification, dropout: float, levels: int
) -> None:
    # local cross-entropies plus a linear term have no lower bound: without the proximal term the loss reaches 1e16
    problem = replace(sbm, network=replace(sbm.network, dropout=dropout))
    f, x = problem.objective(), problem.initial(0)
    solver = NonlinearSchwarz(problem.decomposition(4), problem.hierarchy(levels))
    result = minimise(f, x, solver, stop=Stop(8), values=True)
    values = result.history.column("value")
    assert values[-1] < 0.3 * values[0]
    if dropout == 0.0:
        assert all(b <= a for a, b in zip(values, values[1:], strict=False))


def test_a_coarse_model_without_a_minimiser_has_a_proximal_term() -> None:
    """Corrected, a constant coarse model is linear; with ``mu/2 |y - x|^2``, ``mu = |g| / |x|``, steps end at -g/mu."""
    f = quadratic(8)
    x = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    flat = Quadratic(torch.zeros_like(f.A), torch.zeros_like(f.b), f.bounds)
    hierarchy = Hierarchy((Level(f), Level(flat, Identity(8), 0.1)))
    solver = NonlinearSchwarz(
        index_decomposition(f, contiguous([4, 4], 2)), hierarchy, local_steps=0, globalisation="proximal"
    )
    g = f.gradient(x)
    expected = x - g * (torch.linalg.vector_norm(x) / torch.linalg.vector_norm(g))
    torch.testing.assert_close(run(f, x.clone(), solver, 1), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("subdomains", "parts"), [("parameters", 2), ("both", 3)])
def test_subdomains_of_the_parameters_and_of_both(sbm: NodeClassification, subdomains: str, parts: int) -> None:
    problem = replace(sbm, spaces=replace(sbm.spaces, subdomains=subdomains))
    f, x = problem.objective(), problem.initial(0)
    end = run(f, x, SchwarzAdaGrad(problem.decomposition(parts), **SETTINGS), 15)
    assert float(f.value(end)) < 0.7 * float(f.value(x))


@pytest.mark.skipif(not has_petsc(), reason="petsc4py is missing")
def test_the_small_coarse_space_beats_the_plain_sum(sbm: NodeClassification) -> None:
    plain_problem = replace(sbm, network=replace(sbm.network, dropout=0.0))
    f, x = plain_problem.objective(), plain_problem.initial(0)
    decomposition = plain_problem.decomposition(4)
    plain = run(f, x, SchwarzAdaGrad(decomposition, **SETTINGS), 8)
    spanned = minimise(f, x, SchwarzAdaGrad(decomposition, subspace_steps=6, **SETTINGS), stop=Stop(8), values=True)
    assert float(f.value(spanned.x)) < float(f.value(plain))
    values = spanned.history.column("value")
    assert all(b <= a for a, b in zip(values, values[1:], strict=False))  # it never accepts an increase


def test_a_critical_point_is_left_alone(obstacle: Obstacle) -> None:
    f = obstacle.objective()
    solver = SchwarzAdaGrad(obstacle.decomposition(16, 2), obstacle.hierarchy(2, 8), combine="ras")
    x = minimise(f, obstacle.initial(0), solver, stop=Stop(60, atol=1e-13)).x
    for kind in ("ras", "wasm", "asm"):
        same = replace(solver, local=replace(solver.local, varsigma=1.0), combine=kind)
        again = run(f, x, same, 3)
        torch.testing.assert_close(again, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"combine": "mean"}, "`combine` must be one of asm, ras, wasm"),
        ({"local_steps": -1}, "`local_steps` must be >= 0"),
        ({"damping": -0.5}, "`damping` must be >= 0"),
        ({"subspace_steps": -1}, "`subspace_steps` must be >= 0"),
    ],
)
def test_bad_parameters_are_refused(obstacle: Obstacle, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SchwarzAdaGrad(obstacle.decomposition(4, 1), **settings)


def test_a_correction_that_keeps_little_of_its_promise_is_shortened_with_a_proximal_term():
    q = quadratic(12)
    x = torch.zeros(12, dtype=torch.float64)
    s = 1.99 * (q.solution() - x)  # f falls by half a per cent of the slope, at half the length by a half
    for globalisation, length in (("line-search", 1.0), ("both", 0.5)):
        parts = index_decomposition(q, contiguous([6, 6], 2))
        solver = NonlinearSchwarz(parts, globalisation=globalisation)
        y, state = x.clone(), solver.init(q, x)
        assert solver._move(q, y, s, state)
        assert torch.allclose(y, length * s)
        assert state.shortened == (length < 1)
