"""ASPIN and RASPEN give the same iterates on 1, 2 and 4 ranks."""

import pytest

from tests.helpers import needs_mpi, together

SCRIPT = """
    from dataclasses import replace
    import torch
    from mldd.algebra import contiguous, index_decomposition
    from mldd.ranks import SERIAL, Communicator, world
    from mldd.problems.grids import Forchheimer
    from mldd.problems.images.supervised import Classification
    from mldd.loop import Stop, minimise
    from mldd.solvers import Aspin, Krylov, Raspen

    pair, all_four = Communicator(world().mpi.Split(world().rank // 2)), world()
    assert [comm.ranks for comm in (pair, all_four)] == [2, 4]

    problem = Forchheimer()
    def run(comm, method, parts, two_level, **settings):
        hierarchy = problem.coarse_hierarchy(2, parts) if two_level else None
        solver = method(problem.decomposition(parts, 3, comm), hierarchy, krylov=Krylov(1e-8), comm=comm, **settings)
        result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(3), comm=comm)
        return result.x, (result.state.krylov, result.record.cost.synchronisations), result.record.cost.work_total
    # 3 parts: a rank without a subdomain
    for case in ((Raspen, 8, False), (Raspen, 3, True), (Aspin, 8, True)):
        for settings in ({}, {"globalisation": "line-search", "dense": 0}) if case[0] is Raspen else ({},):
            x, counts, work = run(SERIAL, *case, **settings)
            for comm in (pair, all_four):
                y, theirs, units = run(comm, *case, **settings)
                assert float((x - y).abs().max()) < 1e-9, (case, comm.ranks, float((x - y).abs().max()))
                assert counts == theirs, (case, comm.ranks, counts, theirs)
                # the rows of a rank are iterated until all have converged; fine and coarse level are on all ranks
                assert 0.7 * work < units < comm.ranks * work, (case, comm.ranks, work, units)

    # A network whose data are divided too: what is evaluated locally must not wait for the other rank.
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = inputs[:, :3].argmax(1)
    everything = Classification.of(inputs, labels, hidden=(3,))
    def linearised(comm, method):
        f, x = Classification.of(inputs, labels, hidden=(3,), comm=comm), everything.initial(0)
        whole = index_decomposition(everything, contiguous(f.sizes, 2), comm.share(2))
        decomposition = replace(whole, build=lambda d, f, x, g: whole.build(d, everything, x, g))
        solver = method(decomposition, mu=0.1, comm=comm)
        F, w = solver.linearise(f, x, solver.init(f, x)), everything.initial(1)
        values = minimise(f, x, solver, stop=Stop(2), comm=comm, values=True).history.column("value")
        assert values[2] < values[1] < values[0]
        return F.residual, F.product(w)
    for method in (Raspen, Aspin):
        for alone, shared in zip(linearised(SERIAL, method), linearised(pair, method)):
            assert float((alone - shared).abs().max()) < 1e-9 * float(alone.abs().max())
    if world().rank == 0:
        print("the same on 1, 2 and 4 ranks")
"""


@needs_mpi
@pytest.mark.mpi
def test_iterates_do_not_depend_on_the_number_of_ranks():
    pytest.importorskip("petsc4py")
    assert "the same on 1, 2 and 4 ranks" in together(4, SCRIPT)
