"""All ranks stop at the same step for a validation whose last digits differ, and shards validate together."""

import pytest

from tests.helpers import agree, commands, needs_mpi

SCRIPT = """
    import torch
    from mldd.loop import Status, Stop, Validation, minimise
    from mldd.problems.data import load_graph
    from mldd.problems.graphs import Network, NodeClassification, ShardedClassification
    from mldd.ranks import world
    from mldd.solvers import Adam

    comm = world()
    assert comm.ranks == 2
    data = load_graph("sbm")
    whole = NodeClassification(data, network=Network(hidden=8), comm=comm)
    loss = {0: iter([5, 4, 3, 3.5, 3.6, 3.7, 1]), 1: iter([1, 1, 1, 1, 1, 1, 1])}[comm.rank]
    validation = Validation(lambda x: {"validation_loss": next(loss)}, patience=3)
    result = minimise(whole.objective(), whole.initial(), Adam(0.01), stop=Stop(50), comm=comm, validation=validation)
    assert (result.status, result.record.step, validation.step, validation.value) == (Status.stopped_early, 5, 2, 3.0)
    steps = comm.gather_items((result.record.step, result.history.column("validation_loss")))
    assert steps[0] == steps[1]

    x = whole.initial(3)
    part = torch.arange(whole.graph.nodes) % 2
    shards = ShardedClassification.of(data, part, comm, network=Network(hidden=8))
    alone = NodeClassification(data, network=Network(hidden=8)).validation(x)
    for problem in (whole, shards):
        found = problem.validation(x)
        assert all(abs(found[name] - alone[name]) < 1e-10 for name in alone), (found, alone)
    if comm.rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_ranks_validate_and_stop_together():
    agree(2, SCRIPT)


@needs_mpi
@pytest.mark.mpi
def test_all_ranks_refuse_a_folder_with_results(tmp_path):
    out = tmp_path / "out"
    line = f"train obstacle:n=7 --solver adagrad --steps 2 --quiet --out {out}"
    first, (codes, said), third = commands(2, line, line, f"{line} --overwrite")
    assert first == third == ({0}, [])
    assert codes == {2} and len(said) == 1, said
    assert said[0].startswith(f"mldd: error: the folder {out} must be free, got one with the results of another run")
