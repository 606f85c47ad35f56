"""Operator learning: dense oracles, derivatives, and local losses whose mean is the loss."""

import numpy as np
import pytest
import torch

import mldd
from mldd.algebra import counting
from mldd.loop import Stop, minimise
from mldd.problems.operators import (
    AllenCahnOperator,
    BarotropicOperator,
    CutOptions,
    NetworkOptions,
    SampleOptions,
)
from mldd.solvers import Adam, LocalAdam

ROUNDING = {"rtol": 1e-11, "atol": 1e-14}


def small(n=9, layers=3, samples=0, batch=4, **cut):
    return AllenCahnOperator(
        n=n,
        network=NetworkOptions(hidden=5, layers=layers),
        sampling=SampleOptions(samples, batch, validated=4, leads=3),
        pieces=CutOptions(**cut),
        dtype="float64",
    )


def on_sphere(resolution=1, layers=2, **cut):
    return BarotropicOperator(
        resolution=resolution,
        network=NetworkOptions(hidden=5, layers=layers),
        sampling=SampleOptions(0, 4, validated=4, leads=3),
        pieces=CutOptions(**cut),
        dtype="float64",
    )


def somewhere(problem, parts=0):
    shape = (parts, problem.net.layout.size) if parts else (problem.net.layout.size,)
    return 0.4 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense_loss(problem, x, numbers):
    """The mean squared error by dense matrices and torch's own derivatives."""
    n = problem.n
    node = torch.arange(n * n).view(n, n)
    mean = torch.zeros(n * n, n * n, dtype=torch.float64)
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        mean[node.flatten(), torch.roll(node, shift, (0, 1)).flatten()] += 0.25
    weight, bias, *inner, out, last = problem.net.layout.views(x)
    total = 0.0
    for u, kappa, change in problem.stream.fields("training", numbers):
        s = torch.stack([u, kappa], 1) @ weight + bias
        for k in range(problem.net.layers):
            own, around, shift = inner[3 * k : 3 * k + 3]
            s = s + torch.nn.functional.silu(s @ own + mean @ s @ around + shift)
        total = total + ((s @ out + last)[:, 0] - change / problem.scale).square().mean()
    return total / len(numbers)


def test_loss_and_derivatives_against_dense_matrices():
    problem = small()
    x, v = somewhere(problem), somewhere(problem).flip(0)
    f = problem.objective().sample(3)
    numbers = range(12, 16)
    exact = lambda x: dense_loss(problem, x, numbers)  # noqa: E731
    value, g = f.value_and_gradient(x)
    torch.testing.assert_close(value, exact(x), **ROUNDING)
    torch.testing.assert_close(f.value(x), value, **ROUNDING)
    at = x.clone().requires_grad_()
    torch.testing.assert_close(g, torch.autograd.grad(exact(at), at)[0], rtol=1e-9, atol=1e-12)
    product = torch.autograd.functional.hvp(exact, x, v)[1]
    torch.testing.assert_close(f.hessian_product(x, v), product, rtol=1e-8, atol=1e-10)


def test_derivatives_are_aggregated_as_dense_matrices_do():
    problem = on_sphere()
    x, sphere = somewhere(problem), problem.domain
    mean = sphere.matrix.toarray() / sphere.matrix.toarray().sum(1, keepdims=True)
    dense = [mean, *(w.toarray() - np.diag(w.toarray().sum(1)) for w in sphere.derivatives)]
    weight, bias, *inner, out, last = problem.net.layout.views(x)
    total = 0.0
    for *read, change in problem.stream.fields("training", range(4)):
        s = torch.stack(read, 1) @ weight + bias
        for k in range(2):
            own, *around, shift = inner[5 * k : 5 * k + 5]
            slopes = [torch.from_numpy(a) @ s @ v for a, v in zip(dense, around, strict=True)]
            s = s + torch.nn.functional.silu(s @ own + sum(slopes) + shift)
        total = total + ((s @ out + last)[:, 0] - change / problem.scale).square().mean() / 4
    torch.testing.assert_close(problem.objective().sample(0).value(x), total, **ROUNDING)


def test_the_start_is_persistence():
    problem = small(n=16)
    x = problem.initial(0)
    changes = problem.stream.fields("training", range(32))[:, 2]
    torch.testing.assert_close(problem.objective().value(x), changes.square().mean() / problem.scale**2, **ROUNDING)
    assert problem.metrics(x)["rollout_skill"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("cut", "parts", "overlap"),
    [
        ({"subdomains": "samples"}, 4, 0),
        ({"subdomains": "parts"}, 4, 3),
        ({"subdomains": "parts"}, 6, 9),  # rectangles of unequal sizes, and more rings than layers
        ({"subdomains": "parts", "cut": "metis"}, 5, 3),
        ({"subdomains": "both", "shares": 2}, 8, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("samples", [0, 12])
def test_exact_local_losses_have_the_loss_as_their_mean(cut, parts, overlap, samples):
    problem = small(samples=samples, **cut)
    x, d = somewhere(problem), problem.decomposition(parts, overlap)
    for f in (problem.objective(), problem.objective().sample(5)):
        model = d.models(f, x, f.gradient(x))  # corrected on the samples of f
        value, g = f.value_and_gradient(x)
        shares = d.shares_of(f)
        torch.testing.assert_close(shares @ model.value(d.gather(x)), value, **ROUNDING)
        torch.testing.assert_close(shares @ model.f.gradient(d.gather(x)), g, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(model.gradient(d.gather(x)), g.expand(parts, -1), rtol=1e-9, atol=1e-12)


def test_exact_local_losses_on_the_sphere():
    problem = on_sphere(subdomains="parts")
    x, d, f = somewhere(problem), problem.decomposition(3, 2), problem.objective().sample(1)
    model, shares = d.models(f, x, None), d.shares_of(f)
    torch.testing.assert_close(shares @ model.value(d.gather(x)), f.value(x), **ROUNDING)
    torch.testing.assert_close(shares @ model.gradient(d.gather(x)), f.gradient(x), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="`cut` must be metis on a sphere"):
        on_sphere(subdomains="parts", cut="rectangles").decomposition(3, 2)


def test_fewer_rings_than_layers_are_nearly_exact():
    problem = small(n=16, layers=4, subdomains="parts")
    f = problem.objective().sample(0)
    x = problem.initial(0) + 0.1 * somewhere(problem)
    gaps = []
    for overlap in range(5):
        d = problem.decomposition(4, overlap)
        gaps.append(
            float((d.models(f, x, None).gradient(d.gather(x)).mean(0) - f.gradient(x)).norm() / f.gradient(x).norm())
        )
    assert gaps[4] < 1e-12 < gaps[3]
    assert gaps[2] < 0.3 * gaps[0]


def test_a_batch_of_subdomains_is_each_by_itself():
    problem = small(subdomains="both", shares=2)
    d, f, y = problem.decomposition(8, 1), problem.objective().sample(1), somewhere(problem, 8)
    together = d.models(f, y[0], None)
    values, g = together.value_and_gradient(y)
    products = together.hessian_product(y, y.flip(0))
    for k in (0, 5, 7):
        alone = d.alone(k).models(f, y[0], None)
        for row, other in zip((values, g), alone.value_and_gradient(y[k : k + 1]), strict=True):
            torch.testing.assert_close(row[k : k + 1], other, rtol=1e-9, atol=1e-12)
        product = alone.hessian_product(y[k : k + 1], y.flip(0)[k : k + 1])
        torch.testing.assert_close(products[k : k + 1], product, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("samples", [0, 12])
def test_shares_of_a_batch_are_all_of_it_and_steps_see_others(samples):
    problem = small(samples=samples, subdomains="samples")
    d, x = problem.decomposition(2, 0), somewhere(problem)
    seen = [d.models(problem.objective().sample(step), x, None).numbers for step in range(3)]
    assert all(numbers.shape == (2, 2) for numbers in seen)
    assert len(torch.unique(torch.cat(seen))) == 12


def test_work_is_that_of_the_nodes_that_layers_keep():
    problem = small(n=24, layers=4, subdomains="parts")
    x = problem.initial(0)
    f = problem.objective().sample(0)

    def work(overlap):
        d = problem.decomposition(4, overlap)
        with counting() as cost:
            d.models(f, x, None).gradient(d.gather(x))
        return cost.work

    with counting() as cost:
        f.gradient(x)
    assert cost.work == pytest.approx(1 / 8)  # a batch of eight
    assert cost.gradients == 1
    rings = [144, 144 + 48, 144 + 96 + 4]  # a square of 12 x 12 with 0, 1, 2 rings of neighbours
    assert work(0) * 8 == pytest.approx(1.0, rel=0.02)
    kept = (2 * rings[2] + rings[1] + rings[0]) / (4 * rings[0])
    assert work(2) * 8 == pytest.approx(kept, rel=0.02)
    assert work(2) * 8 < (1 + 2 * 2 / 12) ** 2


def test_rollouts_are_repeated_steps():
    problem = small(n=8)
    x = problem.initial(0) + 0.1 * somewhere(problem)
    made = problem.rollouts.rollout(x)
    u, kappa, _ = problem.stream.fields("validation", range(4)).unbind(1)
    for state in made:
        torch.testing.assert_close(torch.from_numpy(state), u, **ROUNDING)
        u = u + problem.rollouts.change(x, torch.stack([u, kappa], 1))
    truth = problem.rollouts.truth
    error = ((made[-1] - truth[-1]) ** 2).sum()
    still = ((truth[0] - truth[-1]) ** 2).sum()
    assert problem.metrics(x)["rollout_skill"] == pytest.approx(1 - error / still, rel=1e-10)
    change = problem.stream.fields("validation", range(4))[:, 2].numpy()
    gap = (made[1] - truth[0]) - change
    assert problem.validation(x)["validation_loss"] == pytest.approx((gap**2).mean() / problem.scale**2, rel=1e-10)


def test_one_call_from_python():
    run = mldd.train("allen-cahn-operator", n=6, network=NetworkOptions(hidden=3, layers=1), validated=2, steps=1)
    assert run.problem.net.hidden == 3
    assert run.metrics["validation_loss"] > 0


def test_pictures_are_drawn_of_what_a_rank_has(tmp_path):
    for problem in (small(n=6), on_sphere()):
        folder = tmp_path / type(problem).__name__
        folder.mkdir()
        drawn = problem.pictures(folder, problem.initial(0), 1)
        assert sorted(path.name for path in drawn) == ["rollout.png", "skill.png"]
        assert all(path.stat().st_size > 5_000 for path in drawn)


def test_training_learns_the_operator():
    problem = small(n=12, layers=2, batch=4, subdomains="parts")
    end = minimise(problem.objective(), problem.initial(0), Adam(0.03), stop=Stop(60)).x
    assert problem.validation(end)["validation_loss"] < 0.3
    solver = LocalAdam(problem.decomposition(4, 1), Adam(0.03), 10)
    end = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(6)).x
    assert problem.validation(end)["validation_loss"] < 0.3


def test_training_learns_the_vorticity_equation():
    problem = on_sphere(resolution=2)
    end = minimise(problem.objective(), problem.initial(0), Adam(0.03), stop=Stop(80)).x
    found = problem.metrics(end)
    assert found["validation_loss"] < 0.5
    assert found["rollout_skill"] > 0.3


@pytest.mark.parametrize(
    ("cut", "parts", "overlap", "said"),
    [
        ({"subdomains": "samples"}, 3, 0, "`batch` must be a multiple of 3"),
        ({"subdomains": "both", "shares": 2}, 5, 0, "`parts` must be a multiple of 2"),
        ({"subdomains": "parts"}, 0, 0, "`parts` must be >= 1"),
        ({"subdomains": "parts"}, 4, -1, "`overlap` must be >= 0"),
        ({"subdomains": "parts"}, 11, 0, "use another number of parts"),
        ({"subdomains": "parts", "cut": "metis"}, 82, 0, "parts"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(cut, parts, overlap, said):
    with pytest.raises(ValueError, match=said):
        small(**cut).decomposition(parts, overlap)


def test_bad_keys_are_refused():
    with pytest.raises(ValueError, match="`n` must be >= 3"):
        AllenCahnOperator(n=2)
    with pytest.raises(ValueError, match="`batch` must be in 1..4"):
        SampleOptions(samples=4, batch=5)
    with pytest.raises(ValueError, match="`subdomains` must be one of samples, parts, both"):
        CutOptions(subdomains="nodes")
    with pytest.raises(ValueError, match="`hidden` must be >= 1"):
        AllenCahnOperator(network=NetworkOptions(hidden=0))
