"""LocalSGD, Local Adam and DiLoCo give the same digits on 1 and 2 ranks, other methods with mini-batches nearly so."""

import pytest

from tests.helpers import launch, needs_mpi

SCRIPT = """
    import torch
    from mldd.ranks import SERIAL, world
    import mldd
    from mldd.problems.data.datasets import sbm
    from mldd.problems.forecasts import Forecasting
    from mldd.problems.graphs import NodeClassification
    from mldd.problems.images import Digits
    from tests.small_series import waves
    from mldd.loop import Status, Stop, minimise
    from mldd.solvers import Adam, Sgd
    from mldd.solvers import DiLoCo, LocalAdam, LocalSgd
    from mldd.solvers.parts import LearningRate
    from mldd.solvers import AdaGrad, MultilevelAdaGrad
    from mldd.solvers import SchwarzAdaGrad

    assert world().ranks == 2

    def same(make, exactly=True, **options):
        def run(comm):
            problem = Digits(hidden="8", samples=101, subdomains="data", comm=comm, **options)
            solver = make(problem, problem.decomposition(3, 4), comm)
            result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(5), comm=comm)
            return result.x, result.record
        x, record = run(SERIAL)
        y, again = run(world())
        assert float((x - y).abs().max()) <= (0.0 if exactly else 1e-10), (options, float((x - y).abs().max()))
        assert abs(again.cost.work_total - record.cost.work_total) < 1e-9 * record.cost.work_total
        assert again.cost.synchronisations == record.cost.synchronisations
        assert (again.accepted, again.rejected) == (record.accepted, record.rejected)

    for memory in ("reset", "keep", "average"):
        same(lambda p, d, comm: LocalSgd(d, Sgd(0.1, 0.9), local_steps=3, memory=memory, comm=comm))
        same(lambda p, d, comm: DiLoCo(d, Adam(0.01), local_steps=3, memory=memory, comm=comm))
    for options in ({}, {"delay": 2}, {"control": True}, {"rates": LearningRate("cosine", 1, 5), "growth": True}):
        for dtype in ("float64", "float32"):
            same(lambda p, d, comm: LocalAdam(d, Adam(0.01), 3, comm=comm, **options), batch=20, dtype=dtype)
    for options in (
        {"batch": 20, "growth": 1.5, "sampling": "nested"},
        {"batch": 20, "sampling": "shared"},
        {"batch": 20, "sampling": "independent"},
    ):
        same(lambda p, d, comm: DiLoCo(d, Adam(0.01), local_steps=3, comm=comm), **options)
        same(lambda p, d, comm: MultilevelAdaGrad(p.hierarchy(2), AdaGrad(rate=0.1)), False, **options)
        rate = {"local": AdaGrad(rate=0.1), "local_steps": 2, "combine": "wasm"}
        same(lambda p, d, comm: SchwarzAdaGrad(d, comm=comm, **rate), False, **options)

    # Parts of a graph, cut off behind their overlap, and pairs of such a part and a share of the samples.
    data, series = sbm(nodes=120, classes=3, features=5), waves(80, 4, 4)
    def trained(kind, name, comm, **options):
        problem = mldd.problem(kind, name=name, hidden=4, local="restricted", comm=comm, **options)
        solver = LocalAdam(problem.decomposition(3, 1), Adam(0.01), local_steps=2, comm=comm)
        stop = Stop(3)
        return minimise(problem.objective(), problem.initial(0), solver, stop=stop, comm=comm, values=0).x
    for kind, name, options in (
        (NodeClassification, data, {"partition": "mixed"}),
        (Forecasting, series, {"batch": 6, "shares": 2, "horizon": 2}),
    ):
        one, two = (trained(kind, name, comm, **options) for comm in (SERIAL, world()))
        assert torch.equal(one, two), (kind, float((one - two).abs().max()))

    # One rank whose parts all diverge: counted alike everywhere, and nobody waits.
    class Bad(Adam):
        def step(self, objective, y, state):
            y, state = super().step(objective, y, state)
            return (y * torch.inf if world().rank == 1 else y), state
    problem = Digits(hidden="8", samples=101, subdomains="data", comm=world())
    solver = DiLoCo(problem.decomposition(3), local=Bad(), comm=world())
    result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(2), comm=world())
    assert (result.record.accepted, result.record.rejected) == (2, 4)
    assert result.status is Status.max_steps
    if world().rank == 0:
        print("the same on 1 and 2 ranks")
"""


@needs_mpi
@pytest.mark.mpi
def test_iterates_do_not_depend_on_the_number_of_ranks():
    pytest.importorskip("sklearn")
    done = launch(2, SCRIPT, safe=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same on 1 and 2 ranks" in done.stdout
