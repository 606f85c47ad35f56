"""Networks of their own on P ranks give what one rank gives."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import mldd
    import torch
    from mldd.algebra import counting
    from mldd.algebra import sampled
    from mldd.ranks import SERIAL, Communicator, world
    from mldd.problems.data.datasets import sbm
    from mldd.problems.graphs import SubdomainNetworks
    from mldd.loop import Stop, minimise
    from mldd.solvers import NonlinearSchwarz

    data = sbm(nodes=200, classes=3, features=5)

    def same(a, b, what, tolerance=1e-12):
        assert torch.allclose(a, b, rtol=tolerance, atol=1e-14), (what, float((a - b).abs().max()))

    def check(comm):
        for options in ({"networks": 5}, {"networks": 3, "model": "sage", "coarse": "whole", "dropout": 0.3}):
            if options["networks"] + 1 < comm.ranks:
                continue
            options = {"name": data, "hidden": 4, "dropout": 0.0, "clusters": 20, **options}
            here, there = [mldd.problem(SubdomainNetworks, comm=c, **options) for c in (comm, SERIAL)]
            x = there.initial(0) + 0.1
            v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
            for step in (None, 1):
                f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in (here, there)]
                with counting() as cost:
                    value, gradient = f.value_and_gradient(x)
                assert (cost.gradients, cost.synchronisations) == (1, 2), cost
                total = comm.sum_scalars([cost.work])[0]
                assert 0.9 < total < comm.ranks, (cost, total)  # padding differs; every rank pays for its calls
                expected, of_one = g.value_and_gradient(x)
                same(value, expected, "value")
                same(f.value(x), expected, "value alone")
                same(gradient, of_one, "gradient")
                same(f.hessian_product(x, v), g.hessian_product(x, v), "product")
            parts = len(here.sizes)
            d, e = here.decomposition(parts), there.decomposition(parts)
            for y in (x, x + 0.01):  # outputs known, and outputs evaluated anew
                mine, all_of_them = d.models(f, y, gradient), e.models(g, y, of_one)
                total = d.scatter(d.weights("ras") * mine.gradient(d.gather(y) + 0.1))
                expected = e.scatter(e.weights("ras") * all_of_them.gradient(e.gather(y) + 0.1))
                same(comm.sum(total), expected, "local models")
            prices = [getattr(f, "f", f).price.gradient for f in (mine, all_of_them)]
            assert 0.6 < comm.sum_scalars(prices[:1])[0] / prices[1] < comm.ranks, prices  # likewise
            assert here.metrics(x) == there.metrics(x)
            runs = []
            for p, s, c in ((here, d, comm), (there, e, SERIAL)):
                solver = NonlinearSchwarz(s, local_steps=3, globalisation="line-search", comm=c)
                runs.append(minimise(p.objective(), x.clone(), solver, stop=Stop(max_steps=3)).x)
            same(*runs, "three steps", 1e-6)

    def check_idle_ranks(comm):
        options = {"networks": 2, "coarse": "none", "hidden": 4, "dropout": 0.0}
        f, g = [mldd.problem(SubdomainNetworks, name=data, comm=c, **options).objective() for c in (comm, SERIAL)]
        x = torch.linspace(-1, 1, f.size, dtype=torch.float64)
        same(f.value_and_gradient(x)[1], g.value_and_gradient(x)[1], "gradient with idle ranks")
        same(f.hessian_product(x, x), g.hessian_product(x, x), "product with idle ranks")

    check_idle_ranks(world())
    both = Communicator(world().mpi.Split(world().rank // 2))
    check(both)
    check(world())
    if world().rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_and_four_ranks_agree_with_one():
    agree(4, SCRIPT)
