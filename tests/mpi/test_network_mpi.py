"""A network in the laboratory: results are unchanged, and messages take what the cost model says."""

import json

from tests.helpers import launch, needs_mpi

SCRIPT = """
    import sys
    import torch
    from dataclasses import replace
    from pathlib import Path
    from mldd.algebra import counting
    from mldd.command.cli import main
    from mldd.graph import CostModel, Work
    from mldd.loop import Stop, minimise
    from mldd.ranks import EmulatedCommunicator, Interconnect, part_sum, world
    from mldd.solvers import Adam
    from tests.problems.operators.test_operator_learning import small, somewhere

    network, pauses = Interconnect(1e-3, 1e6), []
    comm = EmulatedCommunicator(real=world(), network=network, pause=pauses.append)
    ours = replace(small(sharing="nodes", n=8), comm=comm)
    plain = replace(ours, comm=world())
    x, f = somewhere(ours), ours.objective().sample(0)
    f.gradient(x)  # all buffers are there
    before, count = replace(comm.booked), len(pauses)
    with counting() as cost:
        g = f.gradient(x)
    assert (g == plain.objective().sample(0).gradient(x)).all()

    # 2 exchanged layers, there and back, with the only neighbour; one sum of N + 1 numbers
    layers, rows, size = 2, cost.halo_rows // 4, 8 * (len(x) + 1)
    assert cost.halo_rows == 4 * 16 and cost.halo_bytes == cost.halo_rows * 4 * 5 * 8
    work = Work(messages=2 * layers, halo_bytes=cost.halo_bytes, rounds=2, reduced_bytes=size)
    rates = CostModel(messages=1e-3, halo_bytes=1e-6, rounds=1e-3, reduced_bytes=1e-6)
    predicted = rates.step([work])
    booked = comm.booked
    assert abs(booked.exchange_seconds - before.exchange_seconds - predicted.exchange[0]) < 1e-12
    assert abs(booked.collective_seconds - before.collective_seconds - predicted.reduce) < 1e-12
    assert len(pauses) == count + 4 + 1 and pauses[-1] == predicted.reduce

    ends = [minimise(p.objective(), p.initial(0), Adam(0.01), stop=Stop(3), comm=p.comm).x for p in (ours, plain)]
    assert (ends[0] == ends[1]).all()
    gathered = comm.gather(torch.full((comm.rank + 1, 2), float(comm.rank)))
    assert (gathered == world().gather(torch.full((comm.rank + 1, 2), float(comm.rank)))).all()
    assert comm.gather_items(comm.rank) == [0, 1] and comm.agree(False) == 2

    rows, before = torch.arange(10.0)[None] * (comm.rank + 1), replace(comm.booked)
    assert (part_sum(rows, 2, comm) == part_sum(rows, 2, world())).all()
    assert abs(comm.booked.collective_seconds - before.collective_seconds - network.sum_seconds(40, 2)) < 1e-12

    network = "latency=100us,bandwidth=10Gb/s"
    words = ["train", "allen-cahn-operator:n=8,layers=2,sharing=nodes,validated=2", "--solver", "adam", "--steps", "2"]
    sys.exit(main([*words, "--network", network, "--out", sys.argv[1]]))
"""


@needs_mpi
def test_messages_are_held_back_by_what_they_would_take(tmp_path):
    done = launch(2, SCRIPT, tmp_path / "run", safe=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "network" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["network"]["latency"], result["network"]["bandwidth"]) == (1e-4, 1.25e9)
    assert result["network"]["exchanges"] >= result["exchanges"] > 0  # values for the user are not counted in the run
    assert result["network"]["collective_seconds"] >= 2e-4 * result["synchronisations"]
