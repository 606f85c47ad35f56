"""Any module and data on P ranks: losses, mini-batches, parts and iterates are those of one rank."""

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import warnings
    import torch
    from torch.nn import functional
    from mldd.algebra import sampled
    from mldd.loop import Stop, minimise
    from mldd.problems.modules import SupervisedProblem
    from mldd.ranks import SERIAL, world
    from mldd.solvers import Adam, NonlinearSchwarz
    from tests.problems.modules.test_supervised_problem import data, net

    warnings.simplefilter("ignore")  # a batch that is coupled is said to be so

    def same(a, b, what, tolerance=1e-12):
        gap = float((a - b).norm() / b.norm())
        assert gap <= tolerance, (what, gap)

    for norm in (False, True):
        for batch in (0, 20):
            made = [SupervisedProblem(net(0.2, norm), data(), functional.cross_entropy, batch=batch, comm=comm)
                    for comm in (world(), SERIAL)]
            x = made[1].initial(0)
            for step in (None, 0, 5):
                f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in made]
                same(f.value(x), g.value(x), (norm, batch, step))
                same(f.gradient(x), g.gradient(x), (norm, batch, step, "gradient"))
            ends = [minimise(p.objective(), x, Adam(0.01), stop=Stop(5), comm=p.comm).x for p in made]
            same(*ends, (norm, batch, "five steps"), 1e-10)
    for subdomains, parts in (("layers", 2), ("data", 4), ("both", 2)):
        ends = []
        for comm in (world(), SERIAL):
            p = SupervisedProblem(net(), data(), functional.cross_entropy, subdomains=subdomains, comm=comm)
            solver = NonlinearSchwarz(p.decomposition(parts, 0), comm=comm)
            ends.append(minimise(p.objective(), p.initial(0), solver, stop=Stop(3), comm=comm).x)
        same(*ends, subdomains, 1e-8)
    print("all the same")
"""


@needs_mpi
def test_two_ranks_give_what_one_rank_gives():
    agree(2, SCRIPT)
