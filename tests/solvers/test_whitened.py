"""Any solver in white coordinates: its steps are preconditioned ones, and nothing is lost on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mldd.algebra import Bounds, Hierarchy, Level, MatrixTransfer, Remembered
from mldd.checkpoints import load, save
from mldd.graph import Graph
from mldd.loop import Stop, minimise
from mldd.problems.data import GraphData
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.problems.images import Digits
from mldd.problems.modules import SupervisedProblem
from mldd.solvers import LBFGS, Adam, LocalSgd, MultilevelLBFGS, NonlinearSchwarz, Sgd, Whitened


@pytest.fixture(scope="module")
def problem() -> NodeClassification:
    """Three communities whose features are words of very different frequency."""
    generator = torch.Generator().manual_seed(0)
    n, features = 90, 70
    labels = torch.arange(n) % 3
    ends = torch.randint(0, n, (2, 500), generator=generator)
    like = labels[ends[0]] == labels[ends[1]]
    often = torch.linspace(0.6, 0.02, features)
    x = (torch.rand(n, features, generator=generator) < often).double()
    x[:, :3] += torch.nn.functional.one_hot(labels, 3)
    fold = torch.arange(n) // 3 % 4
    masks = {"train": fold < 2, "validation": fold == 2, "test": fold == 3}
    data = GraphData("toy", Graph.from_edges(ends[:, like], n), x / x.sum(1, keepdim=True), labels, classes=3, **masks)
    network = Network(hidden=5, dropout=0.0)
    return NodeClassification(data, network=network, spaces=Spaces(clusters=24), labels="all")


def dense(solver: Whitened, x: Tensor) -> Tensor:
    """B as a matrix."""
    return solver.prepare(x).apply(torch.eye(len(x), dtype=x.dtype))


def test_descent_is_preconditioned_by_the_square(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(0)
    solver = Whitened(problem.first_layer(), Sgd(0.3), rank=4)
    M = dense(solver, x) @ dense(solver, x)
    found = minimise(f, x, solver, stop=Stop(6)).x
    for _ in range(6):
        x = x - 0.3 * M @ f.gradient(x)
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-12)


def test_the_inputs_are_those_of_the_first_layer(problem: NodeClassification) -> None:
    first = problem.first_layer()
    A = problem.source.operator.toarray()
    wanted = torch.from_numpy(A) @ problem.graph_data.features
    W = torch.randn(first.size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = problem.initial(0)
    x[first.places] = W
    weight, bias = problem.net.layout.views(x)[:2]
    by_places = torch.from_numpy(first.inputs[0] @ W[:-1].numpy()) + W[-1]
    assert torch.allclose(by_places, wanted @ weight + bias, rtol=1e-10)


def test_places_of_a_module_are_those_of_its_first_linear_map() -> None:
    net = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = SupervisedProblem(net, (X, torch.zeros(20, 2, dtype=torch.float64)), nn.functional.mse_loss)
    first = made.first_layer()
    W = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = made.initial()
    x[first.places] = W
    made.flat.load(x)
    inputs = torch.from_numpy(first.inputs[0])
    order = made.samples.stacked[0]
    assert torch.allclose(net[1](net[0](order)), inputs @ W[:-1] + W[-1], rtol=1e-10)
    image = SupervisedProblem(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 2)),
        (torch.zeros(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)),
        nn.functional.cross_entropy,
    )
    with pytest.raises(ValueError, match=r"whose first layer is a linear map \(nn.Linear\), got Conv2d"):
        image.first_layer()


def test_lbfgs_counts_as_without_and_gets_further(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(0)
    plain = minimise(f, x, LBFGS(scaling="auto"), stop=Stop(40, target=0.3), values=True)
    white = minimise(f, x, Whitened(problem.first_layer()), stop=Stop(40, target=0.3), values=True)
    cost = white.record.cost
    assert white.record.value <= 0.3 < plain.history.records[white.record.step].value
    assert cost.gradient_evaluations == white.state.inner.evaluations + 1  # nothing is evaluated twice
    assert cost.synchronisations == cost.gradient_evaluations + 3  # and three for the metric, made at the start


def test_scaling_by_rows_of_the_same_metric_is_unaffected_by_scaled_inputs(problem: NodeClassification) -> None:
    """Full whitening without damping makes steepest descent independent of a linear change of the inputs."""
    X = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    T = torch.tensor([[3.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.1]], dtype=torch.float64)
    y = (X @ torch.ones(3, 1, dtype=torch.float64)).sin()

    def losses(inputs: Tensor) -> list[float]:
        net = nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            net.weight.zero_()
        made = SupervisedProblem(net, (inputs, y), nn.functional.mse_loss)
        solver = Whitened(made.first_layer(), LBFGS(memory=1), damping=0.0)
        found = minimise(made.objective(), made.initial(), solver, stop=Stop(2, atol=1e-9), values=True)
        return [record.value for record in found.history.records]

    assert losses(X)[-1] == pytest.approx(losses(X @ T)[-1], rel=1e-6)


def test_nested_iteration_has_the_same_metric_on_all_levels(problem: NodeClassification) -> None:
    hierarchy, f, x = problem.hierarchy(2), problem.objective(), problem.initial(0)
    solver = Whitened(problem.first_layer(), MultilevelLBFGS(hierarchy, 10), rank=4)
    found = minimise(f, x, solver, stop=Stop(1), values=True)
    assert found.state.accepted == 1
    change = solver.prepare(x)
    by_hand = Whitened(problem.first_layer(), LBFGS(scaling="auto"), rank=4)
    coarse = Remembered(hierarchy[1].objective, True)
    y, state = x.clone(), by_hand.init(coarse, x)
    for _ in range(10):
        y, state = by_hand.step(coarse, y, state)
    assert torch.allclose(found.x, y, rtol=1e-6, atol=1e-8)
    assert torch.allclose(change.solve(found.x), found.state.v, rtol=1e-9, atol=1e-12)


def test_local_models_are_in_the_same_coordinates(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(0)
    parts = problem.decomposition(3)
    solver = Whitened(problem.first_layer(), LocalSgd(parts, local=Sgd(0.1), local_steps=4), rank=4)
    M = dense(solver, x) @ dense(solver, x)
    found = minimise(f, x, solver, stop=Stop(3)).x
    models = problem.local_batch(problem.parts(3), range(3))
    for _ in range(3):
        y = x.expand(3, -1).clone()
        for _ in range(4):
            y = y - 0.1 * models.gradient(y) @ M
        x = y.mean(0)
    assert torch.allclose(found, x, rtol=1e-8, atol=1e-10)


def test_corrected_local_models_keep_their_fixed_point(problem: NodeClassification) -> None:
    f, x = problem.objective(), problem.initial(0)
    solver = Whitened(problem.first_layer(), NonlinearSchwarz(problem.decomposition(3)), rank=4)
    found = minimise(f, x, solver, stop=Stop(4), values=True)
    values = [record.value for record in found.history.records]
    assert values == sorted(values, reverse=True)
    state = solver.init(Remembered(f), x)
    inner = solver._inner(solver.prepare(x))
    outer = solver._around(Remembered(f), solver.prepare(x), state.v, x)
    g = outer.gradient(state.v)
    local = inner.decomposition.models(outer, state.v, g)  # corrected: the gradient is that of the whole
    assert torch.allclose(local.gradient(state.v.expand(3, -1)), g.expand(3, -1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", [LBFGS(scaling="auto"), Adam(0.02)], ids=["lbfgs", "adam"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(problem, solver, tmp_path) -> None:
    f, x = problem.objective(), problem.initial(0)
    white = Whitened(problem.first_layer(), solver)
    whole = minimise(f, x, white, stop=Stop(9), values=True)
    half = minimise(f, x, white, stop=Stop(4), values=True)
    save(tmp_path / "c.pt", x=half.x, state=half.state, history=half.history, meta={})
    saved, again = load(tmp_path / "c.pt"), Whitened(problem.first_layer(), solver)
    state = saved.state(again.init(f, x))
    rest = minimise(f, saved.x, again, stop=Stop(9), state=state, past=saved.history, values=True)
    assert torch.equal(rest.x, whole.x)
    assert rest.record.cost.gradient_evaluations == whole.record.cost.gradient_evaluations


def test_an_iterate_that_was_moved_from_outside_is_gone_on_from(problem: NodeClassification) -> None:
    f, x = Remembered(problem.objective(), True), problem.initial(0)
    solver = Whitened(problem.first_layer(), Sgd(0.3), rank=4)
    y, state = solver.step(f, x.clone(), solver.init(f, x))
    y.mul_(0.5)
    M, start = dense(solver, x) @ dense(solver, x), y.clone()
    moved, state = solver.step(f, y, state)
    assert torch.allclose(moved, start - 0.3 * M @ f.gradient(start), rtol=1e-9, atol=1e-11)


def test_what_has_no_such_coordinates_is_refused(problem: NodeClassification) -> None:
    first, x = problem.first_layer(), problem.initial(0)
    n = len(x)
    digits = Digits(samples=100)
    with pytest.raises(ValueError, match="needs subdomains that have all unknowns, got `decomposition` of some"):
        Whitened(digits.first_layer(), NonlinearSchwarz(digits.decomposition(2)))
    coarse = Level(problem.objective(), MatrixTransfer(torch.eye(n, dtype=torch.float64)))
    with pytest.raises(ValueError, match="needs coarse levels with the unknowns of the finest, got MatrixTransfer"):
        Whitened(first, MultilevelLBFGS(Hierarchy((Level(problem.objective()), coarse))))
    gin = NodeClassification(problem.name, network=Network(model="gin", hidden=4))
    with pytest.raises(ValueError, match=r"one matrix per input \(gcn, sage, gat\), got gin"):
        gin.first_layer()

    class Boxed:
        size, bounds = n, Bounds(torch.zeros(n).double(), torch.ones(n).double())

    with pytest.raises(ValueError, match="needs an objective without bounds, got one with"):
        Whitened(first).init(Boxed(), x)  # type: ignore[arg-type]
