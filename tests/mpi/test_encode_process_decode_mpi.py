"""A grid and its hidden mesh on ranks give what one rank gives: loss and gradient, Hessian products, any partition."""

import pytest

from tests.helpers import agree, needs_mpi

SCRIPT = """
    import numpy as np
    import mldd
    import torch
    from mldd.algebra import counting
    from mldd.ranks import Communicator, world
    from mldd.algebra import sampled
    from mldd.problems.nets import EncodeProcessDecode
    from mldd.problems.forecasts import Forecasting
    from mldd.problems.nets import MeshSource, stack_meshes
    from mldd.problems.data.mesh_levels import global_mesh, regional_mesh
    from mldd.problems.nets import mesh_shard
    from mldd.problems.data import Series

    KIND = {"dtype": torch.float64, "device": "cpu"}
    S, F, C = 3, 2, 2

    def whole_grid(kind):
        random = np.random.default_rng(0)
        if kind == "global":
            latitude, longitude = np.meshgrid(np.arange(-80.0, 81, 20), np.arange(0.0, 360, 24), indexing="ij")
            mesh = global_mesh(latitude.ravel(), longitude.ravel(), 1)
        else:
            latitude, longitude = np.meshgrid(50 + 0.5 * np.arange(9), 0.5 * np.arange(8), indexing="ij")
            mesh = regional_mesh(latitude.ravel(), longitude.ravel(), 20, levels=2)
        n = len(mesh.grid)
        return MeshSource(mesh, random.standard_normal((n, S * F)), random.standard_normal((n, S * C)))

    def loss(net, batch, leaf):
        return (net.outputs(net.layout.views(leaf), batch) - batch.targets).square().sum()

    def close(a, b):
        return torch.linalg.vector_norm(a - b) <= 1e-12 * torch.linalg.vector_norm(b)

    def check(comm, kind, part, number):
        source = whole_grid(kind)
        for options in ({"rounds": 1, "norm": True}, {"rounds": 3})[number : number + 1]:
            net = EncodeProcessDecode(F, 4, C, **options)
            x = 0.5 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = torch.linspace(-1, 1, len(x), dtype=torch.float64)
            own = np.flatnonzero(part == comm.rank)
            mine = mesh_shard(source.mesh, part, source.features[own], source.targets[own], net.rounds, comm, S, **KIND)
            n = len(source.features)
            everything = stack_meshes([source.piece(np.arange(n), net.layers)], single=True, samples=S, **KIND)
            results = []
            for batch in (mine, everything):
                leaf = x.clone().requires_grad_()
                with counting() as cost:
                    value = loss(net, batch, leaf)
                    (g,) = torch.autograd.grad(value, leaf, create_graph=True)
                    (product,) = torch.autograd.grad((g * v).sum(), leaf)
                row = torch.cat([value.detach()[None], g.detach(), product])
                if batch is mine:
                    comm.sum(row)
                    assert cost.exchanges >= 2 * (net.rounds + 2) or comm.ranks == 1, cost
                results.append(row)
            (value, *_), (reference, *_) = results
            assert abs(value - reference) <= 1e-12 * abs(reference), (float(value), float(reference))
            size = len(x)
            for k in (1, 1 + size):
                assert close(results[0][k : k + size], results[1][k : k + size]), (kind, options, k)

    def partitions(n, ranks):
        yield np.arange(n) * ranks // n
        yield np.random.default_rng(1).integers(ranks, size=n)
        lone = np.zeros(n, dtype=np.int64)  # one node for every other rank, and no mesh node for most
        lone[1:ranks] = np.arange(1, ranks)
        yield lone
        yield np.zeros(n, dtype=np.int64)  # ranks without a node

    def forecast(comm):
        # The problem shares samples instead: ranks without a sample, mini-batches, chunks.
        random = np.random.default_rng(0)
        latitude, longitude = np.meshgrid(50 + np.arange(4.0), np.arange(5.0), indexing="ij")
        time = np.datetime64("2020-01-01", "s") + 3600 * np.arange(120)
        values = random.standard_normal((120, 20, 1)).cumsum(0)
        series = Series("walk", values, time, latitude.ravel(), longitude.ravel(), ("t",), grid=(4, 5))
        for options in ({"chunk": 7}, {"stride": 20, "chunk": 1}, {"batch": 5}):
            options |= {"name": series, "model": "epd", "hidden": 3, "layers": 1, "horizon": 2}
            made = [mldd.problem(Forecasting, comm=c, **options) for c in (comm, Forecasting.comm)]
            net = made[0].net
            x = 0.3 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = torch.linspace(-1, 1, len(x), dtype=torch.float64)
            for step in (0, 1):
                f, g = (sampled(p.objective(), step) for p in made)
                (value, slope), (reference, expected) = f.value_and_gradient(x), g.value_and_gradient(x)
                assert abs(value - reference) <= 1e-12 * abs(reference)
                assert abs(f.value(x) - reference) <= 1e-12 * abs(reference)
                assert close(slope, expected), options
                assert close(f.hessian_product(x, v), g.hessian_product(x, v)), options

    both = Communicator(world().mpi.Split(world().rank // 2))
    for comm in (both, world()):
        forecast(comm)
        for number, part in enumerate(partitions(72, comm.ranks)):
            check(comm, "regional", part, number % 2)
        *_, random_part, _, _ = partitions(len(whole_grid("global").features), comm.ranks)
        check(comm, "global", random_part, 0)
    wrong = np.full(72, world().ranks)
    try:
        source = whole_grid("regional")
        mesh_shard(source.mesh, wrong, source.features, source.targets, 1, world(), S, **KIND)
    except ValueError as error:
        assert "a rank in 0..3" in str(error), error
    else:
        raise AssertionError("a part that is no rank was taken")
    if world().rank == 0:
        print("all the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_and_four_ranks_agree_with_one():
    agree(4, SCRIPT)
