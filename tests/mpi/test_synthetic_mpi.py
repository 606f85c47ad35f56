"""Ranks that make a strip of a grid each get the loss and the gradient of one rank that makes all of it."""

import pytest

from tests.helpers import needs_mpi, together

SCRIPT = """
    import mldd
    import torch
    from mldd.ranks import SERIAL, Communicator, world
    from mldd.problems.graphs import SyntheticClassification

    def check(comm):
        for model, degree in (("gcn", 10), ("sage", 12)):
            options = {"nodes": 140, "columns": 7, "degree": degree, "features": 5, "hidden": 6, "layers": 3}
            options |= {"classes": 3, "model": model, "dtype": "float64", "seed": 4}
            here, alone = [mldd.problem(SyntheticClassification, **options, comm=c) for c in (comm, SERIAL)]
            x = alone.initial(0) + 0.05
            pairs = zip(here.objective().value_and_gradient(x), alone.objective().value_and_gradient(x))
            for a, b in pairs:
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-14), float((a - b).abs().max())
            assert here.metrics(x) == alone.metrics(x)
            assert 2 * here.shard.own < alone.shard.own + 7 or comm.ranks < 2

    check(world())
    check(Communicator(world().mpi.Split(world().rank // 2)))
    print("fine")
"""


@needs_mpi
@pytest.mark.mpi
def test_strips_give_what_the_whole_gives():
    assert together(4, SCRIPT).count("fine") == 4
