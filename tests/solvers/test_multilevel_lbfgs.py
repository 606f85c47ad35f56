"""ML-LBFGS: nested iteration, what is handed on, what is promised; and the scaling by rows against its formula."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import Hierarchy, Identity, Layout, Level, MatrixTransfer, Remembered, counting
from mldd.graph import Graph
from mldd.problems.data import GraphData
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.solvers import LBFGS, Adam, LocalSgd, MultilevelLBFGS
from mldd.solvers.parts import Rows, layout_of
from tests.helpers import pinn, quadratic


@pytest.fixture(scope="module")
def problem() -> NodeClassification:
    """Three noisy communities on which a GCN can be trained in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    n, features = 120, 30
    labels = (torch.arange(n) % 3).long()
    ends = torch.randint(0, n, (2, 900), generator=generator)
    like = labels[ends[0]] == labels[ends[1]]
    keep = like | (torch.rand(900, generator=generator) < 0.1)
    x = torch.rand(n, features, generator=generator, dtype=torch.float64) < 0.15
    x[:, :3] |= torch.nn.functional.one_hot(labels, 3).bool() & (torch.rand(n, 3, generator=generator) < 0.7)
    masks = [torch.arange(n) % 4 == k for k in range(3)]
    data = GraphData(
        name="toy",
        graph=Graph.from_edges(ends[:, keep], n),
        features=x.double() / x.sum(1, keepdim=True).clamp(min=1),
        labels=labels,
        train=masks[0] | masks[1],
        validation=masks[2],
        test=torch.arange(n) % 4 == 3,
        classes=3,
    )
    return NodeClassification(data, network=Network(hidden=8, dropout=0.0), spaces=Spaces(clusters=24), labels="all")


def scales_by_hand(s: Tensor, y: Tensor, blocks: list[list[slice]]) -> Tensor:
    """The formula of `Rows`, row by row; `blocks` has the rows of every tensor."""
    gamma, weight = torch.zeros_like(s), 0.0
    for tensor in blocks:
        a, b = ([float(v[r].square().sum()) for r in tensor] for v in (s, y))
        for r, own_a, own_b in zip(tensor, a, b, strict=True):
            smooth = [0.9 * own + 0.1 * sum(rows) / len(rows) for own, rows in ((own_a, a), (own_b, b))]
            gamma[r] = math.sqrt(smooth[0] / smooth[1])
            weight += math.sqrt(smooth[0] / smooth[1]) * own_b
    return gamma * float(s @ y) / weight


def test_the_scaling_is_its_formula() -> None:
    layout = Layout(((3, 2), (2,), (2, 4), (4,)))
    rows = Rows.of(layout)
    s, noise = torch.randn(2, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = s * torch.linspace(0.1, 30.0, layout.size) + 0.01 * noise
    blocks = [
        [slice(2 * k, 2 * k + 2) for k in range(3)],
        [slice(6, 8)],
        [slice(8, 12), slice(12, 16)],
        [slice(16, 20)],
    ]
    found = rows.scales(s, y, torch.empty_like(s))
    assert torch.allclose(found, scales_by_hand(s, y, blocks), rtol=1e-12)
    assert float(y @ (found * y)) == pytest.approx(float(s @ y), rel=1e-12)
    assert torch.allclose(rows.scales(s, 4.0 * y, torch.empty_like(s)), found / 4, rtol=1e-12)


def test_one_row_gives_the_usual_scale_and_a_row_that_tells_nothing_the_common_one() -> None:
    s, noise = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = 3.0 * s + 0.1 * noise
    one = Rows.of(Layout(((6,),))).scales(s, y, torch.empty_like(s))
    assert torch.allclose(one, (s @ y / (y @ y)).expand(6), rtol=1e-12)
    y[2:] = 0.0
    found = Rows.of(Layout(((2,), (4,)))).scales(s, y, torch.empty_like(s))
    assert bool(torch.isfinite(found).all() and (found > 0).all())


def test_the_direction_is_that_of_the_dense_matrix(problem: NodeClassification) -> None:
    f, x = Remembered(problem.objective()), problem.initial(0)
    solver = LBFGS(4, scaling="rows")
    state = solver.init(f, x)
    for _ in range(6):
        x, state = solver.step(f, x, state)
    pairs = state.pairs
    H = torch.diag(pairs.scales)
    for k in range(pairs.count - 1, -1, -1):  # Nocedal and Wright, equation 7.16
        row = (pairs.newest - k) % len(pairs.steps)
        s, y, rho = pairs.steps[row], pairs.differences[row], 1.0 / pairs.curvatures[row]
        V = torch.eye(len(x), dtype=x.dtype) - rho * torch.outer(y, s)
        H = V.T @ H @ V + rho * torch.outer(s, s)
    g = f.gradient(x)
    assert torch.allclose(pairs.direction(g, torch.empty_like(g)), -H @ g, rtol=1e-9, atol=1e-12)


def test_auto_takes_rows_for_networks_of_features_only(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(0)
    assert layout_of(Remembered(f), len(x)) is problem.net.layout
    assert LBFGS(scaling="auto").init(f, x).pairs.rows is not None
    equation = pinn("poisson1d")
    f, x = equation.objective(), equation.initial(0)
    assert LBFGS(scaling="auto").init(f, x).pairs.rows is None
    assert LBFGS(scaling="rows").init(f, x).pairs.rows is not None
    q = quadratic(8)
    start = torch.zeros(8, dtype=torch.float64)
    assert LBFGS(scaling="auto").init(q, start).pairs.rows is None
    with pytest.raises(ValueError, match="needs the objective of a network"):
        LBFGS(scaling="rows").init(q, start)
    with pytest.raises(ValueError, match="`scaling` must be one of scalar, rows, auto, got 'row'"):
        LBFGS(scaling="row")  # type: ignore[arg-type]


def test_one_level_is_lbfgs(problem: NodeClassification) -> None:
    f = problem.objective()
    ml = minimise(f, problem.initial(0), MultilevelLBFGS(problem.hierarchy(1)), stop=Stop(12))
    single = minimise(f, problem.initial(0), LBFGS(10, scaling="auto"), stop=Stop(12))
    assert torch.allclose(ml.x, single.x, rtol=1e-9, atol=1e-12)
    assert ml.record.cost.gradient_evaluations == single.record.cost.gradient_evaluations


def test_a_copy_of_the_problem_as_coarse_level_is_solved_there(problem: NodeClassification) -> None:
    """A coarse level that is the fine one does the steps of L-BFGS, at its own price, and hands its newest pair on."""
    f = problem.objective()
    double = replace(f, price=replace(f.price, fine=False, gradient=0.25))
    hierarchy = Hierarchy((Level(f), Level(double, Identity(f.size))))
    result = minimise(f, problem.initial(0), MultilevelLBFGS(hierarchy, 9), stop=Stop(1))
    single = minimise(f, problem.initial(0), LBFGS(10, scaling="auto"), stop=Stop(9))
    assert torch.allclose(result.x, single.x, rtol=1e-9, atol=1e-12)
    assert result.record.cost.gradient_evaluations == 2  # at the start, and where the nested iteration has led
    coarse = result.record.cost.work_units - 2  # the value at the start comes with the gradient
    assert coarse == pytest.approx(0.25 * single.record.cost.gradient_evaluations, rel=1e-12)
    handed = result.state.fine.pairs
    assert handed.count == 1
    assert torch.allclose(handed.last[0], single.state.pairs.last[0], rtol=1e-9, atol=1e-12)


def test_nested_iteration_starts_low_and_the_loss_never_rises(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(1)
    result = minimise(f, x, MultilevelLBFGS(problem.hierarchy(3)), stop=Stop(25), values=True)
    single = minimise(f, problem.initial(1), LBFGS(10), stop=Stop(25), values=True)
    values = [record.value for record in result.history.records]
    assert all(b <= a for a, b in zip(values, values[1:], strict=False))
    assert values[1] < single.history.records[5].value
    assert values[-1] < single.record.value
    assert result.history.records[1].level == 2
    assert result.state.accepted == 1


def test_a_coarse_level_that_misleads_is_rejected() -> None:
    f = quadratic(10)
    wrong = replace(f, b=-5.0 * f.b)
    x = f.solution() + 1e-3
    solver = MultilevelLBFGS(Hierarchy((Level(f), Level(wrong, Identity(10)))))
    result = minimise(f, x.clone(), solver, stop=Stop(1))
    assert torch.equal(result.x, x)
    assert (result.state.accepted, result.state.rejected) == (0, 1)


def test_a_solution_stays_where_it_is_and_galerkin_levels_lead_to_the_minimiser_of_their_space() -> None:
    f = quadratic(12, condition=10.0)
    P = torch.kron(torch.eye(4, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    coarse = replace(f, A=P.T @ f.A @ P, b=P.T @ f.b, bounds=quadratic(4).bounds)
    transfer = MatrixTransfer(P)
    solver = MultilevelLBFGS(Hierarchy((Level(f), Level(coarse, transfer))), 60)
    start = torch.zeros(12, dtype=torch.float64)
    first = minimise(f, start.clone(), solver, stop=Stop(1))
    assert torch.allclose(P.T @ f.gradient(first.x), torch.zeros(4, dtype=torch.float64), atol=1e-7)
    end = minimise(f, start.clone(), solver, stop=Stop(80, atol=1e-10))
    assert torch.allclose(end.x, f.solution(), atol=1e-8)


def test_the_state_is_all_there_is(problem: NodeClassification) -> None:
    f = problem.objective()
    solver = MultilevelLBFGS(problem.hierarchy(2), 5)
    whole = minimise(f, problem.initial(0), solver, stop=Stop(8))
    half = minimise(f, problem.initial(0), solver, stop=Stop(4))
    rest = minimise(f, half.x, solver, stop=Stop(8), state=copy.deepcopy(half.state))
    assert torch.allclose(rest.x, whole.x, rtol=1e-9, atol=1e-12)


def test_another_solver_goes_on_from_where_the_levels_lead(problem: NodeClassification) -> None:
    own = replace(problem, spaces=replace(problem.spaces, local="own")).decomposition(2, 0)
    local = LocalSgd(own, local=Adam(0.03), local_steps=4)
    f, solver = problem.objective(), MultilevelLBFGS(problem.hierarchy(2), 5, then=local)
    both = minimise(f, problem.initial(0), solver, stop=Stop(4))
    start = minimise(f, problem.initial(0), replace(solver, then=None), stop=Stop(1))
    alone = minimise(f, start.x, local, stop=Stop(3))
    assert torch.allclose(both.x, alone.x, rtol=1e-9, atol=1e-12)
    assert both.record.cost.synchronisations == 2 + 3  # the nested iteration and its end; then one per round
    assert both.record.cost.gradient_evaluations == 1


def test_costs_of_coarse_levels_are_no_fine_gradients(problem: NodeClassification) -> None:
    solver, f, x = MultilevelLBFGS(problem.hierarchy(2), 5), problem.objective(), problem.initial(0)
    state = solver.init(f, x)
    with counting() as cost:
        solver.step(f, x, state)
    assert (cost.gradients, cost.values) == (1, 1)
    assert cost.synchronisations == 2  # the point that all ranks take, and the gradient there


def test_refuses_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="`coarse_steps` must be >= 0, got -1"):
        MultilevelLBFGS(Hierarchy((Level(quadratic(4)),)), coarse_steps=-1)
    with pytest.raises(ValueError, match="`scaling` must be one of scalar, rows, auto"):
        LBFGS(scaling="diagonal")


def test_refuses_bounds_and_a_hierarchy_of_something_else() -> None:
    bounded = quadratic(6, bounded=True)
    with pytest.raises(ValueError, match="ml-lbfgs needs an objective without bounds"):
        MultilevelLBFGS(Hierarchy((Level(bounded),))).init(bounded, torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="must be one of 6 unknowns on level 0, got 4"):
        MultilevelLBFGS(Hierarchy((Level(quadratic(4)),))).init(quadratic(6), torch.zeros(6, dtype=torch.float64))
