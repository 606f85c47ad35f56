"""Evaluation in float32 and bfloat16 for solvers in float64."""

from dataclasses import replace

import pytest
import torch

import mldd
from mldd.algebra import sampled
from mldd.loop import Stop, minimise
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import NodeClassification
from mldd.problems.nets import MixedNet, widened
from mldd.problems.nets.layers import layer_kinds
from mldd.solvers import LBFGS, NonlinearSchwarz

DATA = sbm(nodes=160, classes=4, features=6)
# of size one: attention to large inner products amplifies rounding
DATA = replace(DATA, features=DATA.features / DATA.features.abs().max())
SPARSE = replace(DATA, features=(DATA.features * (DATA.features > 0.1)).to_sparse_csr())


def problem(**options):
    return mldd.problem(NodeClassification, **{"name": DATA, "hidden": 8, "labels": "all", **options})


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("step", [None, 2])
@pytest.mark.parametrize("model", layer_kinds())
def test_float32_is_the_problem_in_float32(model, step):
    p, q = problem(model=model, evaluate="float32"), problem(model=model, dtype="float32")
    x = p.initial(0)
    assert x.dtype == torch.float64
    value, g = p.objective(step).value_and_gradient(x)
    expected, of_q = q.objective(step).value_and_gradient(x.float())
    assert value.dtype == g.dtype == torch.float64
    assert relative(value, expected) < 1e-6 and relative(g, of_q) < 1e-5
    product = p.objective(step).hessian_product(x, x)
    assert relative(product, q.objective(step).hessian_product(x.float(), x.float())) < 1e-5
    assert 1e-10 < relative(g, problem(model=model).objective(step).gradient(x)) < 1e-4


@pytest.mark.parametrize("data", [DATA, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("model", layer_kinds())
def test_bfloat16_is_near_and_rounds(model, data):
    p, q = problem(model=model, name=data, evaluate="bfloat16", layers=3), problem(model=model, name=data, layers=3)
    x = q.initial(0)
    for step in (None, 2):
        value, g = p.objective(step).value_and_gradient(x)
        expected, of_q = q.objective(step).value_and_gradient(x)
        assert g.dtype == torch.float64
        assert 1e-7 < relative(value, expected) < 0.02
        assert 1e-4 < relative(g, of_q) < 0.3
    assert torch.isfinite(p.objective(2).hessian_product(x, x)).all()


def test_dense_products_are_in_bfloat16_and_sparse_ones_in_float32():
    p = problem(evaluate="bfloat16")
    batch = p._plain.batch
    seen = []
    for operators in batch.operators:
        for operator in operators:
            if operator is not None:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    inner = torch.ones(operator.shape[1], 3) @ torch.ones(3, 3)
                    seen.append((inner.dtype, (operator @ inner).dtype))
    assert seen and set(seen) == {(torch.bfloat16, torch.float32)}
    assert isinstance(p._net, MixedNet) and p._net.layout == p.net.layout
    with pytest.raises(ValueError, match="evaluation in bfloat16 needs operators held by one rank, got object"):
        widened(replace(batch, operators=((object(),),)))


@pytest.mark.parametrize("evaluate", ["float32", "bfloat16"])
def test_local_models_and_coarse_levels(evaluate):
    p = problem(evaluate=evaluate, dropout=0.0)
    f, x, d = p.objective(), p.initial(0), p.decomposition(3)
    g = f.gradient(x)
    models = d.models(f, x, g)
    row = models.gradient(d.gather(x))
    assert row.dtype == torch.float64 and torch.allclose(row, g.expand(3, -1), atol=1e-15)
    assert torch.isfinite(models.hessian_product(d.gather(x), d.gather(x))).all()
    coarse = p.hierarchy(2)[1].objective
    assert coarse.batch.targets.dtype == torch.float64, "coarse levels are evaluated in the precision of the iterates"
    same = problem(dropout=0.0).hierarchy(2)[1].objective
    assert torch.equal(coarse.gradient(x), same.gradient(x))
    assert p.logits(x).dtype == torch.float64


@pytest.mark.parametrize("evaluate", ["float32", "bfloat16"])
def test_methods_run_in_double_precision_with_rounded_gradients(evaluate):
    p = problem(evaluate=evaluate, dropout=0.0)
    exact = problem(dropout=0.0).objective()
    before = float(exact.value(p.initial(0)))
    for solver in (LBFGS(), NonlinearSchwarz(p.decomposition(3), p.hierarchy(2), local_steps=4)):
        x = minimise(p.objective(), p.initial(0), solver, stop=Stop(max_steps=10)).x
        assert x.dtype == torch.float64
        assert float(exact.value(x)) < 0.5 * before
    assert hasattr(problem(evaluate=evaluate, dropout=0.5).objective(), "sample")
    assert not hasattr(p.objective(), "sample")
    assert sampled(p.objective(), 3).size == p.net.layout.size


def test_refuses():
    with pytest.raises(ValueError, match="`evaluate` must be one of dtype, float32, bfloat16, got 'float16'"):
        problem(evaluate="float16")
