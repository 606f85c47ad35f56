"""DD-ADAGB2 gives the same iterates on 1, 2 and 4 ranks."""

import pytest

from tests.helpers import launch, needs_mpi

SCRIPT = """
    import torch
    from mldd.parallel import SERIAL, Communicator, world
    from mldd.problems.datasets import sbm
    from mldd.problems.graphs import NodeClassification
    from mldd.problems.pde import Obstacle
    from mldd.solver import Stop, minimise
    from mldd.solvers.schwarz import SchwarzAdaGrad

    communicators = (Communicator(world().mpi.Split(world().rank // 2)), world())
    assert [comm.ranks for comm in communicators] == [2, 4]

    obstacle = Obstacle(n=31)
    for combine in ("ras", "wasm", "asm"):
        for levels in (1, 2):
            def run(comm):
                hierarchy = obstacle.coarse_hierarchy(levels, 16) if levels > 1 else None
                decomposition = obstacle.decomposition(16, 2, comm)
                solver = SchwarzAdaGrad(decomposition, hierarchy, combine=combine, comm=comm)
                result = minimise(obstacle.objective(), obstacle.initial(0), solver, stop=Stop(8), comm=comm)
                return result.x, result.record.work_units, result.record.synchronisations
            alone = run(SERIAL)
            for comm in communicators:
                x, work, synchronisations = run(comm)
                assert torch.equal(x, alone[0]), (combine, levels, comm.ranks, float((x - alone[0]).abs().max()))
                assert abs(work - alone[1]) < 1e-9 * work
                assert synchronisations == alone[2]

    data = sbm(nodes=400, classes=4, features=8)
    def losses(comm, **settings):
        problem = NodeClassification(data, dropout=0.5, comm=comm)
        solver = SchwarzAdaGrad(
            problem.decomposition(4, 0, comm), problem.hierarchy(2), rate=0.1, varsigma=1e-3, local_steps=4,
            global_steps=0, combine="wasm", comm=comm, **settings)
        f, x = problem.objective(), problem.initial(0)
        return minimise(f, x, solver, stop=Stop(10), comm=comm, values=True).history.column("value")
    # TAO's line search in the small coarse space amplifies rounding
    for settings, most in (({}, 1e-10), ({"nested": 5}, 1e-10), ({"span": 4}, 1e-7)):
        alone = losses(SERIAL, **settings)
        for comm in communicators:
            difference = max(abs(a - b) for a, b in zip(losses(comm, **settings), alone))
            assert difference < most, (settings, comm.ranks, difference)
    if world().rank == 0:
        print("the same on 1, 2 and 4 ranks")
"""


@needs_mpi
@pytest.mark.mpi
def test_iterates_and_losses_do_not_depend_on_the_number_of_ranks():
    pytest.importorskip("petsc4py")
    done = launch(4, SCRIPT, safe=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same on 1, 2 and 4 ranks" in done.stdout
