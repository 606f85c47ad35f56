"""APTS takes the same steps on 1, 2 and 4 ranks, and a local model that breaks down on one of them holds up none."""

import pytest

from tests.helpers import needs_mpi, together

SCRIPT = """
    import torch
    from dataclasses import replace
    from mldd.algebra import LocalRestrictions
    from mldd.ranks import SERIAL, Communicator, world
    from mldd.problems.grids import Obstacle
    from mldd.problems.images import Digits
    from mldd.loop import Status, Stop, minimise
    from mldd.solvers import Apts, TrustRegion

    communicators = (Communicator(world().mpi.Split(world().rank // 2)), world())
    assert [comm.ranks for comm in communicators] == [2, 4]

    def digits(comm, broken=(), steps=3, **options):
        problem = Digits(hidden="6", samples=60, subdomains="data", comm=comm)
        decomposition = problem.decomposition(4)

        def build(d, f, x, g):
            models = decomposition.build(d, f, x, g)
            bad = [row for row, k in enumerate(d.local) if k in broken]
            value, both = models.value, models.value_and_gradient
            def lost(v):
                v[bad] = torch.nan
                return v
            class Broken(type(models)):
                def value(self, y):
                    return lost(value(y))
                def value_and_gradient(self, y):
                    v, g = both(y)
                    return lost(v), g
            return Broken(models.f, models.delta, models.y0, models.bounds)

        solver = Apts(replace(decomposition, build=build), comm=comm, **options)
        result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(steps), comm=comm, values=True)
        assert result.state.dropped == steps * len(broken)
        return result

    sr1 = {"combine": "asm", "local": TrustRegion("sr1"), "outer": TrustRegion("bfgs")}
    for options in (sr1, {"subspace_steps": 2, "outer": TrustRegion(window=3)}, {"broken": (0, 3)}):
        alone = digits(SERIAL, **options)
        for comm in communicators:
            result = digits(comm, **options)
            difference = max(abs(a.value - b.value) for a, b in zip(result.history.records, alone.history.records))
            assert difference < 1e-7, (options, comm.ranks, difference)
            assert result.state.accepted == alone.state.accepted
            assert result.record.cost.synchronisations == alone.record.cost.synchronisations
            if "broken" not in options:  # one that is alone on its rank ends its local steps at once
                works = [run.record.cost.work_total for run in (result, alone)]
                assert abs(works[0] - works[1]) < 1e-9 * works[1]

    obstacle = Obstacle(n=7)
    for combine in ("ras", "wasm"):
        def run(comm):
            box = TrustRegion(norm="inf")
            solver = Apts(obstacle.decomposition(4, 1, comm), box, box, combine, comm=comm)
            f = obstacle.objective()
            result = minimise(f, obstacle.initial(0), solver, stop=Stop(4), comm=comm)
            assert f.bounds.violation(result.x) == 0.0
            return result.x
        alone = run(SERIAL)
        for comm in communicators:
            torch.testing.assert_close(run(comm), alone, rtol=1e-9, atol=1e-11)
    if world().rank == 0:
        print("the same on 1, 2 and 4 ranks")
"""


@needs_mpi
@pytest.mark.mpi
def test_steps_do_not_depend_on_the_number_of_ranks():
    assert "the same on 1, 2 and 4 ranks" in together(4, SCRIPT)
