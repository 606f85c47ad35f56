"""Operator learning on two ranks: shared samples, shared nodes with an exact halo, and subdomains are those of one."""

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import torch
    from mldd.algebra import counting
    from mldd.loop import Stop, minimise
    from mldd.ranks import SERIAL, world
    from mldd.solvers import Adam, LocalAdam
    from tests.problems.operators.test_operator_learning import on_sphere, small, somewhere
    from dataclasses import replace

    def same(a, b, what, tolerance=1e-12):
        gap = float((a - b).norm() / b.norm())
        assert gap <= tolerance, (what, gap)

    comm = world()
    for cut in ({"sharing": "samples"}, {"sharing": "nodes"}, {"sharing": "nodes", "cut": "metis"}):
        for batch in (4, 1):
            alone = small(batch=batch, **cut)
            ours, x = replace(alone, comm=comm), somewhere(alone)
            for step in (None, 3):
                f, g = ours.objective(step), alone.objective(step)
                with counting() as cost:
                    gradient = f.gradient(x)
                same(gradient, g.gradient(x), (cut, batch, step))
                assert cost.synchronisations == 1, cost
                nodes = cut["sharing"] == "nodes"
                assert cost.exchanges == (2 * 2 if nodes else 0), (cost, "no message for the first of three layers")
                if nodes and batch == 4:
                    assert cost.work < 0.75 * (batch if step is not None else 8 * batch) / 32, "ranks share the nodes"
                same(f.value(x), g.value(x), (cut, batch, step, "value"))
                same(f.hessian_product(x, x), g.hessian_product(x, x), (cut, batch, step, "product"), 1e-10)
            for name, value in alone.metrics(x).items():
                assert abs(ours.metrics(x)[name] - value) < 1e-10 * abs(value), name
    ends = [minimise(p.objective(), p.initial(0), Adam(0.01), stop=Stop(5), comm=p.comm).x for p in (ours, alone)]
    same(*ends, "five steps of Adam", 1e-7)
    alone = on_sphere(sharing="nodes")
    ours, x = replace(alone, comm=comm), somewhere(alone)
    with counting() as cost:
        same(ours.objective(2).gradient(x), alone.objective(2).gradient(x), "sphere")
    assert cost.exchanges == 2, "means and derivatives travel together"
    for cut, parts in (({"subdomains": "samples"}, 4), ({"subdomains": "parts"}, 3), ({"subdomains": "both"}, 8)):
        ends = []
        for rank_comm in (comm, SERIAL):
            p = replace(small(**cut), comm=rank_comm)
            solver = LocalAdam(p.decomposition(parts, 1), Adam(0.01), 3, comm=rank_comm)
            ends.append(minimise(p.objective(), p.initial(0), solver, stop=Stop(3), comm=rank_comm).x)
        assert (ends[0] == ends[1]).all(), cut
    print("all the same")
"""


@needs_mpi
def test_two_ranks_do_what_one_does():
    agree(2, SCRIPT)
