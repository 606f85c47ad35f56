"""P ranks give what one rank gives: losses, gradients, samples and decompositions of graphs and dense networks."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import mldd
    import torch
    from mldd.algebra import counting
    from mldd.algebra import sampled
    from mldd.ranks import Communicator, world
    from mldd.problems.data.datasets import sbm
    from mldd.problems.graphs import NodeClassification
    from mldd.problems.nets import Classification

    data = sbm(nodes=300, classes=3, features=5)

    def same(a, b, what):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14), (what, float((a - b).abs().max()))

    def check(comm):
        for options in ({"labels": "all", "layers": 3}, {"model": "sage"}):
            options |= {"name": data, "hidden": 4}
            made = [mldd.problem(NodeClassification, comm=c, **options) for c in (comm, NodeClassification.comm)]
            x = made[0].initial(0) + 0.1
            v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
            rows = []
            for step in (None, 0, 1):
                f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in made]
                with counting() as cost:
                    value, gradient = f.value_and_gradient(x)
                assert (cost.gradients, cost.synchronisations, cost.scalar_synchronisations) == (1, 1, 0), cost
                total = comm.sum_scalars([cost.work])[0]
                assert 0 < cost.work < 1 < total < comm.ranks, (cost, total)  # halos are evaluated several times
                assert cost.bytes == 8 * (len(x) + 1)
                same(value, g.value(x), "value")
                same(f.value(x), value, "value alone")
                same(gradient, g.gradient(x), "gradient")
                same(f.hessian_product(x, v), g.hessian_product(x, v), "product")
            here, there = [p.decomposition(5, 1) for p in made]
            models, all_models = here.models(f, x, gradient), there.models(g, x, gradient)
            for kind in ("asm", "wasm"):
                mine = here.scatter(here.weights(kind) * models.gradient(here.gather(x) + 0.01))
                everything = there.scatter(there.weights(kind) * all_models.gradient(there.gather(x) + 0.01))
                same(comm.sum(mine), everything, kind)
            work = comm.sum_scalars([models.f.price.gradient])[0]
            # padding differs, and every rank pays for its calls
            assert 0.75 < work / all_models.f.price.gradient < comm.ranks, (work, all_models.f.price)
            assert made[0].metrics(x) == made[1].metrics(x)
            same(made[0].hierarchy(2)[1].objective.gradient(x), made[1].hierarchy(2)[1].objective.gradient(x), "coarse")

        inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        labels = torch.arange(50) % 3
        f, g = [Classification.of(inputs, labels, (6,), comm=c) for c in (comm, NodeClassification.comm)]
        x = f.initial(0)
        for a, b in zip(f.value_and_gradient(x), g.value_and_gradient(x)):
            same(a, b, "dense")
        same(f.value(x), g.value(x), "dense value")
        same(f.hessian_product(x, x), g.hessian_product(x, x), "dense product")

    both = Communicator(world().mpi.Split(world().rank // 2))
    assert (world().ranks, both.ranks) == (4, 2)
    check(both)
    check(world())
    if world().rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_and_four_ranks_agree_with_one():
    agree(4, SCRIPT)
