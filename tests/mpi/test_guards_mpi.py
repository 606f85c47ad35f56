"""A bit that flips in the memory of one rank is found by all, which go back together; clean ranks are not suspected."""

from tests.helpers import agree, needs_mpi

PROGRAM = """
    import warnings
    from dataclasses import dataclass, field

    import mldd
    import torch
    from mldd.algebra import Around
    from mldd.graph import partition
    from mldd.loop import Detection, Status, Stop, minimise
    from mldd.problems.data import load_graph
    from mldd.problems.graphs import ShardedClassification
    from mldd.ranks import world
    from mldd.solvers import Adam, LBFGS, SchwarzAdaGrad

    comm = world()
    warnings.simplefilter("ignore")

    @dataclass(frozen=True)
    class Struck(Around):
        at: int
        bit: int
        calls: list = field(default_factory=lambda: [0])

        def gradient(self, x):
            self.calls[0] += 1
            if self.calls[0] == self.at and comm.rank == 1:
                x.data.view(torch.int64)[5] ^= 1 << self.bit
            return self.f.gradient(x)

    def run(f, x, solver, detection):
        return minimise(f, x, solver, stop=Stop(max_steps=8), comm=comm, detection=detection)

    obstacle, data = mldd.problem("obstacle", n=7), load_graph("sbm")
    sharded = ShardedClassification.of(data, partition(data.graph, comm.ranks), comm)
    cut = obstacle.decomposition(4, 1, comm)
    for problem, solver in (
        (obstacle, SchwarzAdaGrad(decomposition=cut, comm=comm)), (sharded, Adam(0.01)), (sharded, LBFGS()),
    ):
        f, x = problem.objective(), problem.initial(0)
        clean = run(f, x, solver, Detection(share=0.0))
        watched = run(f, x, solver, Detection(verify_every=1))
        assert watched.rollbacks == 0 and torch.equal(watched.x, clean.x), watched.state.notes
    f, x = sharded.objective(), sharded.initial(0)
    clean = run(Struck(f, -1, 0), x, Adam(0.01), Detection(share=0.0))
    for bit in (0, 40):
        # Nothing is compared but at the end, where the ranks are found apart, and after every step.
        for detection in (Detection(share=1e-9), Detection(verify_every=10**9)):
            found = run(Struck(f, 6, bit), x, Adam(0.01), detection)
            assert found.rollbacks == 1 and found.status is Status.max_steps, (found.status, found.state.notes)
            assert torch.equal(found.x, clean.x)
            assert comm.gather_items(found.x.tolist())[0] == found.x.tolist()
        unseen = run(Struck(f, 6, bit), x, Adam(0.01), Detection(share=0.0))
        assert len({tuple(item) for item in comm.gather_items(unseen.x.tolist())}) == 2  # apart, and nobody knows
    apart = run(f, x + 1e-9 * comm.rank, Adam(0.01), Detection())
    assert apart.status is Status.corrupted and len(apart.history.records) == 1

    @dataclass(frozen=True)
    class Rounded:
        solver: object
        size: float

        def init(self, objective, x):
            return self.solver.init(objective, x)

        def step(self, objective, x, state):
            x, state = self.solver.step(objective, x, state)
            return x * (1.0 + self.size * comm.rank), state

    # Last digits that differ again are those of another processor; more than these are not.
    for size, status, times in ((1e-15, Status.max_steps, 1), (1e-4, Status.corrupted, 3)):
        found = run(f, x, Rounded(Adam(0.01), size), Detection(verify_every=10**9))
        assert (found.status, found.rollbacks) == (status, times), (size, found.status, found.rollbacks)
    print("all the same")
"""


@needs_mpi
def test_ranks_that_are_apart_are_found():
    agree(2, PROGRAM)
