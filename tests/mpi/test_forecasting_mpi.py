"""P ranks give what one rank gives: losses, gradients, mini-batches and local models of forecasting problems."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import mldd
    import torch
    from mldd.algebra import counting
    from mldd.algebra import sampled
    from mldd.ranks import world
    from mldd.problems.forecasts import Forecasting
    from tests.small_series import waves

    comm = world()
    series = waves(120, 5, 6, gaps=0.05)

    def same(a, b, what):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13), (what, float((a - b).abs().max()))

    fed_back = {"horizon": 2, "rollout": 2}
    mesh = {"model": "epd"}
    for options in ({"batch": 8}, fed_back, mesh, mesh | fed_back, {"model": "gat", "local": "own"}):
        made = [mldd.problem(Forecasting, name=series, hidden=4, comm=c, **options) for c in (comm, Forecasting.comm)]
        x = made[0].initial(0) + 0.05
        for step in (None, 3):
            f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in made]
            with counting() as cost:
                value, gradient = f.value_and_gradient(x)
            assert (cost.gradients, cost.synchronisations) == (1, 1)
            same(value, g.value(x), "value")
            same(f.value(x), value, "value alone")
            same(gradient, g.gradient(x), "gradient")
            same(f.hessian_product(x, x), g.hessian_product(x, x), "product")
        here, there = [p.decomposition(4, 1) for p in made]
        models, all_models = here.models(f, x, gradient), there.models(g, x, gradient)
        mine = here.scatter(here.weights("wasm") * models.gradient(here.gather(x) + 0.01))
        everything = there.scatter(there.weights("wasm") * all_models.gradient(there.gather(x) + 0.01))
        same(comm.sum(mine), everything, "local models")
        assert made[0].metrics(x) == made[1].metrics(x)
    if comm.rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_ranks_agree_with_one():
    agree(2, SCRIPT)
