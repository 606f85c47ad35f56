"""P ranks that hold a part each compute what one rank with the whole graph computes, for every layer and partition."""

import pytest
import torch

from mldd.graph import partition
from mldd.problems.data import write
from mldd.problems.data.datasets import sbm
from tests.helpers import commands, needs_mpi, result, together

START = """
    import sys
    from dataclasses import replace
    import numpy as np
    import mldd
    import torch
    from mldd.algebra import counting
    from mldd.graph import Graph
    from mldd.algebra import sampled
    from mldd.ranks import Communicator, SERIAL, world
    from mldd.graph import partition
    from mldd.problems.nets import composite_labels, stack
    from mldd.problems.nets.layers import layer_kinds, layer_of
    from mldd.problems.data.datasets import GraphData, sbm
    from mldd.problems.graphs import NodeClassification
    from mldd.problems.graphs import NodeLoss, ShardedClassification
    from mldd.problems.graphs.shard_clusters import ShardClusters
    from tests.small_graphs import sharded
    from mldd.loop import Stop, minimise
    from mldd.command.names import solver_spec

    def same(a, b, what, tolerance=1e-12):
        assert float((a - b).norm()) <= tolerance * float(b.norm()), (what, float((a - b).norm() / b.norm()))

    pair = Communicator(world().mpi.Split(world().rank // 2))
"""

EXACT = (
    START
    + """
    whole_data = sbm(nodes=90, classes=3, features=4, seed=1)
    # Part 3 has no training node, and the last five nodes have no edge.
    train = whole_data.train.clone()
    metis = partition(whole_data.graph, 4)
    train &= metis != 3
    keep = whole_data.graph.edge_index
    keep = keep[:, (keep < 85).all(0)]
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(keep.shape[1], generator=generator) + 0.2
    attributes = torch.randn(keep.shape[1], 2, generator=generator)
    graph = Graph.from_edges(keep, 90, weights, attributes)
    data = GraphData("cut", graph, whole_data.features, whole_data.labels, train,
                     whole_data.validation, whole_data.test, 3)
    number = torch.arange(90)
    random = torch.randperm(90, generator=torch.Generator().manual_seed(0)) % 4
    isolated = torch.where(number >= 85, 3, number % 3)  # a rank whose nodes have no edges
    parts = {"metis": metis, "random": random, "contiguous": number * 4 // 90, "isolated": isolated, "nodes": number}

    for model in layer_kinds():
        for layers in (1, 2, 3, 4):
            options = {"model": model, "layers": layers, "hidden": 4, "dropout": 0.4}
            if layers == 3:
                options |= {"residual": True, "activation": "elu", "heads": 2 if layer_of(model).many_heads else 1}
            reference = mldd.problem(NodeClassification, name=data, **options)
            x = reference.initial(0) + 0.1
            v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
            chosen = parts if layers == 2 else {"random": random}
            expected = []
            for f in (reference.objective(), sampled(reference.objective(), 1)):
                expected.append((*f.value_and_gradient(x), f.hessian_product(x, v)))
            for name, part in chosen.items():
                for comm in (pair, world())[layers == 4 :]:
                    where = (model, layers, name, comm.ranks)
                    one = sharded(data, part, comm, **options)
                    for f, (value, gradient, product) in zip((one.objective(), sampled(one.objective(), 1)), expected):
                        with counting() as cost:
                            other, slope = f.value_and_gradient(x)
                        assert (cost.gradients, cost.synchronisations) == (1, 1), cost
                        assert abs(comm.sum_scalars([cost.work])[0] - 1.0) < 1e-12, cost
                        assert cost.exchanges == 2 * (layers - 1), cost
                        same(other, value, where)
                        same(slope, gradient, where)
                        # 1e-14 of x changes the product of the transformer by 3e-10 at this point
                        same(f.hessian_product(x, v), product, where, 1e-9)
                    same(one.objective().value(x), expected[0][0], where)
    assert one.metrics(x) == reference.metrics(x)
    if world().rank == 0:
        print("all the same")
"""
)

MODELS = (
    START
    + """
    data = sbm(nodes=90, classes=3, features=4, seed=1)
    part = partition(data.graph, 4)
    generator = torch.Generator().manual_seed(5)
    attributes = torch.randn(data.graph.edges, 2, generator=generator, dtype=torch.float64)
    plain, told = data, replace(data, graph=replace(data.graph, edge_attributes=attributes))
    for model, data in (("gcn", plain), ("gat", plain), ("transformer", told)):
        options = {"model": model, "hidden": 4, "dropout": 0.0, "clusters": 12}
        whole = mldd.problem(NodeClassification, name=data, **options)
        for comm in (pair, world()):
            one = sharded(data, part, comm, **options)
            f, x = one.objective(), one.initial(0) + 0.1
            g = f.gradient(x)
            (clustered,) = ShardClusters.of(one.graph, one.parts(4), one.shard.whole.sizes, [12], one.seed)
            labels = np.empty(90, dtype=np.int64)
            pairs = zip(comm.gather_items(one.shard.numbers), comm.gather_items(clustered.own))
            for nodes, of in pairs:
                labels[nodes] = of
            # local models: each rank knows the others by clusters, the oracle has the whole graph
            pieces = [whole.source.aggregated(composite_labels((part == k).numpy(), labels), 2) for k in range(4)]
            oracle = NodeLoss(whole.net, stack(pieces, dtype=torch.float64), whole.network.decay)
            d = one.decomposition(4)
            y = (x.expand(4, -1) + 0.01 * torch.arange(4)[:, None]).contiguous()
            models = d.models(f, x, g)
            with counting() as cost:
                found = models.f.gradient(y[d.local.start : d.local.stop])
            assert cost.exchanges == cost.synchronisations == cost.scalar_synchronisations == 0, cost
            same(found, oracle.gradient(y)[d.local.start : d.local.stop], (model, "composite"))
            same(models.gradient(d.gather(x)), g.expand(len(d.local), -1), (model, "first order"))
            # the coarse graph
            coarse = NodeLoss(whole.net, stack([whole.source.aggregated(labels, 2)], single=True, dtype=torch.float64),
                              whole.network.decay)
            piece = clustered.coarse(2)
            mine = NodeLoss(whole.net, stack([piece], single=True, dtype=torch.float64), whole.network.decay)
            same(mine.gradient(x), coarse.gradient(x), (model, "coarse"))
    data = plain
    # more parts than shards per rank
    two = sharded(data, part, world(), hidden=4, dropout=0.0)
    f, x = two.objective(), two.initial(0)
    d = two.decomposition(8)
    assert len(d.local) == 2
    same(d.models(f, x, f.gradient(x)).gradient(d.gather(x)), f.gradient(x).expand(2, -1), "two parts per rank")
    try:
        two.decomposition(6)
    except ValueError as error:
        assert "`parts` must be a multiple of the 4 shards, or a divisor of 4" in str(error)
    if world().rank == 0:
        print("all the same")
"""
)

HISTORIES = (
    START
    + """
    def trained(problem, name, comm, decomposition, levels=2, **changed):
        own = {k: v for k, v in problem.settings(name).items() if k not in ("parts", "overlap")} | changed
        hierarchy = problem.hierarchy(levels) if levels > 1 else None
        solver = solver_spec(name).make(decomposition=decomposition, hierarchy=hierarchy, comm=comm, **own)
        f, start = problem.objective(), problem.initial(0)
        before = float(f.value(start))
        done = minimise(f, start, solver, stop=Stop(max_steps=6), comm=comm)
        assert float(f.value(done.x)) < 0.98 * before, (name, before)  # something was learnt
        return torch.tensor(done.history.column("measure"), dtype=torch.float64), done.x

    def on_shards(name, comm, local, parts, **changed):
        one = mldd.problem(ShardedClassification, folder=sys.argv[1], hidden=6, clusters=20, local=local, comm=comm)
        return trained(one, name, comm, one.decomposition(parts) if parts else None, **changed)

    def agree(name, local="composite", parts=4, **changed):
        found = [on_shards(name, comm, local, parts, **changed) for comm in (SERIAL, pair, world())]
        for (history, x), ranks in zip(found[1:], (2, 4)):
            assert history.shape == found[0][0].shape, (name, ranks)
            same(history, found[0][0], (name, local, parts, ranks, "history"), 1e-10)
            same(x, found[0][1], (name, local, parts, ranks, "end"), 1e-10)

    # dropout is 0.5 and every layer has an exact halo; steps of schwarz are few, as L-BFGS amplifies last digits
    few = {"coarse.steps": 3, "local_steps": 3}
    agree("dd-adagrad")
    agree("dd-adagrad", local="own", parts=8)
    agree("schwarz", **few)
    agree("ml-adagrad", parts=0)
    # one level on the whole graph with the same parts is the same training
    data, part = torch.load(sys.argv[2], weights_only=False)
    whole = mldd.problem(NodeClassification, name=data, hidden=6, clusters=20)
    theirs = trained(whole, "dd-adagrad", SERIAL, whole.decomposition(part), levels=1)
    ours = on_shards("dd-adagrad", world(), "composite", 4, levels=1)
    same(ours[0], theirs[0], "whole", 1e-10)
    if world().rank == 0:
        print("all the same")
"""
)


@needs_mpi
@pytest.mark.mpi
@pytest.mark.parametrize("script", [EXACT, MODELS], ids=["exact", "models"])
def test_ranks_agree_with_one(script):
    assert "all the same" in together(4, script)


@needs_mpi
@pytest.mark.mpi
def test_trainings_are_the_same_on_1_2_and_4_ranks(tmp_path):
    data = sbm(nodes=240, classes=3, features=6)
    part = partition(data.graph, 4)
    write(data, part, tmp_path / "shards")
    torch.save((data, part), tmp_path / "whole.pt")
    assert "all the same" in together(4, HISTORIES, tmp_path / "shards", tmp_path / "whole.pt")


@pytest.fixture
def folder(tmp_path):
    data = sbm(nodes=90, classes=3, features=4)
    write(data, partition(data.graph, 3), tmp_path / "shards")
    return tmp_path / "shards"


@needs_mpi
@pytest.mark.mpi
def test_the_command_line_counts_halos(run, folder, tmp_path, without_figures):
    line = f"train {folder} --solver adam --steps 4 --quiet --out"
    assert run(line, tmp_path / "1")[0] == 0
    assert commands(3, f"{line} {tmp_path / '3'}") == [({0}, [])]
    one, three = result(tmp_path / "1"), result(tmp_path / "3")
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-10)
    assert three["exchanges"] == 2 * three["gradient_evaluations"] > one["exchanges"] == 0
    assert three["halo_bytes"] > three["halo_rows"] > 0
    assert [rank["halo_nodes"] > 0 for rank in three["details"]["ranks"]] == [True] * 3


@needs_mpi
@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "message"), [(2, "expected sha256"), (4, "at most 3 ranks, got 4")])
def test_all_ranks_end_when_one_cannot_read(folder, ranks, message):
    part = folder / "part-00002.npz"
    part.write_bytes(part.read_bytes()[:-7])
    ((codes, said),) = commands(ranks, f"train {folder} --solver adam --steps 4 --quiet")
    assert codes == {2} and len(said) == 1 and said[0].startswith("mldd:") and message in said[0], said
