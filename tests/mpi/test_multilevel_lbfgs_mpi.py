"""ML-LBFGS, in white coordinates too, gives the same iterates on 1, 2 and 4 ranks for the same synchronisations."""

import pytest

from tests.helpers import needs_mpi, together

SCRIPT = """
    import mldd
    import torch
    from mldd.graph import Graph
    from mldd.ranks import SERIAL, Communicator, world
    from mldd.problems.data import GraphData
    from mldd.problems.graphs import NodeClassification
    from mldd.loop import Stop, minimise
    from mldd.solvers import MultilevelLBFGS, Whitened

    communicators = (Communicator(world().mpi.Split(world().rank // 2)), world())
    generator = torch.Generator().manual_seed(0)
    n = 90
    labels, fold = torch.arange(n) % 3, torch.arange(n) // 3 % 4
    ends = torch.randint(0, n, (2, 500), generator=generator)
    x = torch.rand(n, 70, generator=generator, dtype=torch.float64)
    x[:, :3] += torch.nn.functional.one_hot(labels, 3)
    masks = {"train": fold < 2, "validation": fold == 2, "test": fold == 3}
    data = GraphData("toy", Graph.from_edges(ends, n), x, labels, classes=3, **masks)

    def run(comm, levels, white):
        options = {"hidden": 6, "labels": "all", "dropout": 0.0, "clusters": 20}
        problem = mldd.problem(NodeClassification, name=data, comm=comm, **options)
        solver = MultilevelLBFGS(problem.hierarchy(levels), 6, comm=comm)
        solver = Whitened(problem.first_layer(), solver, rank=3) if white else solver
        return minimise(problem.objective(), problem.initial(0), solver, stop=Stop(8), comm=comm)

    for levels, white in ((1, False), (3, False), (3, True)):
        alone = run(SERIAL, levels, white)
        for comm in communicators:
            result = run(comm, levels, white)
            difference = float((result.x - alone.x).abs().max())
            assert difference < (1e-6 if white else 1e-9), (levels, difference)
            assert result.record.cost.gradient_evaluations == alone.record.cost.gradient_evaluations
            assert result.record.cost.synchronisations == alone.record.cost.synchronisations
            assert len({tuple(x.tolist()) for x in comm.gather(result.x[None])}) == 1
    if world().rank == 0:
        print("the same on 1, 2 and 4 ranks")
"""


@needs_mpi
@pytest.mark.mpi
def test_iterates_do_not_depend_on_the_number_of_ranks():
    assert "the same on 1, 2 and 4 ranks" in together(4, SCRIPT)
