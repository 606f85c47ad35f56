"""Any network on a graph on P ranks: loss, gradient, samples and iterates are those of one rank."""

import pytest

from tests.helpers import agree, needs_mpi, together

SCRIPT = """
    import torch
    from mldd.algebra import sampled
    from mldd.loop import Stop, minimise
    from mldd.problems.modules import Division, GraphProblem
    from mldd.ranks import SERIAL, world
    from mldd.solvers import LBFGS, Adam, SchwarzAdaGrad
    from tests.problems.modules.one_graph.test_graph_problem import NETS, data

    def same(a, b, what, tolerance):
        gap = float((a - b).norm() / (b.norm() + 1e-300))
        assert gap <= tolerance, (what, gap)

    for name, make in NETS.items():
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            made = []
            for comm in (world(), SERIAL):
                torch.manual_seed(1)
                made.append(GraphProblem(make().to(dtype), data(), comm=comm))
            x = made[1].initial(0) + 0.05
            assert torch.equal(made[0].initial(0), made[1].initial(0))
            for step in (None, 0, 3):
                f, g = [p.objective() if step is None else sampled(p.objective(), step) for p in made]
                same(f.value(x), g.value(x), (name, step, "value"), tolerance)
                same(f.gradient(x), g.gradient(x), (name, step, "gradient"), tolerance * 10)
            if dtype is torch.float64:
                v = torch.linspace(-1, 1, len(x), dtype=dtype)
                f, g = [getattr(p.objective(), "f", p.objective()) for p in made]
                same(f.hessian_product(x, v), g.hessian_product(x, v), (name, "product"), 1e-10)
                ends = [minimise(p.objective(), x, Adam(0.01), stop=Stop(10), comm=p.comm).x for p in made]
                same(*ends, (name, "ten steps"), 1e-9)
    for local in ("composite", "own"):
        ends = []
        for comm in (world(), SERIAL):
            torch.manual_seed(1)
            p = GraphProblem(NETS["by hand"]().double(), data(), division=Division(local=local), comm=comm, batch=20)
            solver = SchwarzAdaGrad(p.decomposition(4, 1), comm=comm)
            ends.append(minimise(p.objective(), p.initial(0), solver, stop=Stop(5), comm=comm).x)
        same(*ends, local, 1e-6)  # AdaGrad of rate 1 makes much of rounding
    print("all the same")
"""


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_what_one_rank_gives(ranks):
    pytest.importorskip("torch_geometric")
    agree(ranks, SCRIPT)


@needs_mpi
def test_what_cannot_be_shared_out_is_refused_on_all_ranks():
    pytest.importorskip("torch_geometric")
    printed = together(
        2,
        """
        import torch
        from mldd.problems.modules import GraphProblem
        from mldd.ranks import world
        from tests.problems.modules.one_graph.test_graph_problem import GlobalNorm, data
        try:
            GraphProblem(GlobalNorm().double(), data(), comm=world()).objective()
        except ValueError as error:
            assert "GraphNorm" in str(error), error
            print("refused")
        """,
    )
    assert printed.count("refused") == 2
