"""P ranks give what one rank gives: residual losses whose points are divided, mini-batches, layer-wise subdomains."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import torch
    from mldd.algebra import counting
    from mldd.algebra import sampled
    from mldd.ranks import SERIAL, world
    from tests.helpers import pinn

    def same(a, b, what):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13), (what, float((a - b).abs().max()))

    comm = world()
    assert comm.ranks == 2
    cases = {"klein-gordon": {"points": 1200}, "burgers": {"batch": 15}, "poisson1d": {"boundary": "soft"}}
    for name, options in cases.items():
        options = {"depth": 4, "width": 5, "points": 51} | options
        here, there = (pinn(name, comm=c, **options) for c in (comm, SERIAL))
        x = here.initial(0) + 0.1
        v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
        for step in (0, 1):
            f, g = sampled(here.objective(), step), sampled(there.objective(), step)
            assert len(f.points) < len(g.points) == f.total
            with counting() as cost:
                value, gradient = f.value_and_gradient(x)
            assert (cost.gradients, cost.synchronisations, cost.scalar_synchronisations) == (1, 1, 0), cost
            assert cost.work == len(f.points) / options["points"], cost
            same(value, g.value(x), name)
            same(f.value(x), value, name)
            same(gradient, g.gradient(x), name)
            same(f.hessian_product(x, v), g.hessian_product(x, v), name)
            mine, all_of_them = here.decomposition(3, 1), there.decomposition(3, 1)
            parts = []
            for d, objective in ((mine, f), (all_of_them, g)):
                local = d.models(objective, x, None).gradient(d.gather(x) + 0.01 * d.valid)
                parts.append(d.scatter(d.weights("wasm") * local))
            same(comm.sum(parts[0]), parts[1], name)
        if name == "poisson1d":
            coarse = [problem.hierarchy(2)[1].objective.gradient(x) for problem in (here, there)]
            same(*coarse, "coarse")
        assert here.metrics(x) == there.metrics(x)
    if comm.rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_ranks_agree_with_one():
    agree(2, SCRIPT)
