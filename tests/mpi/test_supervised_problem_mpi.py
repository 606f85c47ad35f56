"""Any module and data on P ranks: losses, mini-batches, parts and iterates are those of one rank."""

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import warnings
    from functools import partial
    import torch
    from torch.nn import functional
    from mldd.algebra import counting, sampled
    from mldd.loop import Stop, minimise
    from mldd.problems.modules import SupervisedProblem
    from mldd.ranks import SERIAL, world
    from mldd.solvers import Adam, NonlinearSchwarz
    from tests.problems.modules.test_supervised_problem import data, net

    warnings.simplefilter("error")  # a batch that is coupled is said to be so

    def same(a, b, what, tolerance=1e-12):
        gap = float((a - b).norm() / b.norm())
        assert gap <= tolerance, (what, gap)

    weighted = partial(functional.cross_entropy, weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))

    def kinds(norm, batch, comm):
        yield SupervisedProblem(net(0.2, norm), data(), weighted, batch=batch, comm=comm)
        try:
            from tests.problems.modules.test_graph_samples import Net, graphs
        except ImportError:
            return
        yield SupervisedProblem(Net(dropout=0.2, norm=norm), graphs(25), batch=batch, comm=comm)

    for norm in (False, True):
        for batch in (0, 11):
            for made in zip(kinds(norm, batch, world()), kinds(norm, batch, SERIAL)):
                what, x = (len(made[0].samples), norm, batch), made[1].initial(0)
                for step in (None, 0, 5):
                    f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in made]
                    same(f.value(x), g.value(x), (what, step))
                    with counting() as ours:
                        gradient = f.gradient(x)
                    with counting() as theirs:
                        same(gradient, g.gradient(x), (what, step, "gradient"))
                    assert ours.work < 0.6 * theirs.work, "ranks share the samples"
                    v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
                    same(f.hessian_product(x, v), g.hessian_product(x, v), (what, step, "product"), 1e-11)
                ends = [minimise(p.objective(), x, Adam(0.01), stop=Stop(5), comm=p.comm).x for p in made]
                same(*ends, (what, "five steps"), 1e-7)  # of a bias before a norm Adam sees rounding alone
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
