"""Any network on a graph: its loss is that of a plain loop, parts and ranks give what the whole graph gives."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import mldd
from mldd.algebra import Price, counting, sampled
from mldd.graph import grow
from mldd.loop import Stop, minimise
from mldd.problems.modules import Division, GraphProblem
from mldd.problems.modules.one_graph.graph_loss import GraphLoss
from mldd.problems.modules.one_graph.locality import NotLocalError
from mldd.solvers import Adam, MultilevelLBFGS, SchwarzAdaGrad

gnn = pytest.importorskip("torch_geometric.nn")
models = pytest.importorskip("torch_geometric.nn.models")
N, F, C = 150, 6, 3


class Attention(nn.Module):
    """GATv2 with attributes of edges, batch normalisation and dropout."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.convs = nn.ModuleList([gnn.GATv2Conv(F, 4, heads=2, edge_dim=2), gnn.GATv2Conv(8, C, edge_dim=2)])
        self.norm = nn.BatchNorm1d(8)
        self.dropout = dropout

    def forward(self, x, edge_index, edge_attr=None):
        x = functional.elu(self.norm(self.convs[0](x, edge_index, edge_attr)))
        return self.convs[1](functional.dropout(x, self.dropout, self.training), edge_index, edge_attr)


class Messages(gnn.MessagePassing):
    """A layer written by hand, that sums what its neighbours send times the weight of the edge."""

    def __init__(self):
        super().__init__(aggr="add")
        self.first, self.last = nn.Linear(F, 5), nn.Linear(5, C)

    def forward(self, x, edge_index, edge_weight):
        return self.last(torch.tanh(self.propagate(edge_index, x=self.first(x), weight=edge_weight)))

    def message(self, x_j, weight):
        return weight[:, None] * x_j


class GlobalNorm(nn.Module):
    """A network whose normalisation sees all nodes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = gnn.GCNConv(F, 4), gnn.GraphNorm(4), gnn.GCNConv(4, C)

    def forward(self, x, edge_index):
        return self.last(self.norm(self.conv(x, edge_index)).relu(), edge_index)


def pna():
    return gnn.PNAConv(F, C, ["mean", "max", "std"], ["identity", "amplification"], torch.tensor([1, 5, 20, 30, 10, 4]))


class Single(nn.Module):
    """One PNA layer with a batch normalisation before it."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(F), pna()

    def forward(self, x, edge_index):
        return self.conv(self.norm(x), edge_index)


class OfEdges(nn.Module):
    """Messages that are normalised over all edges."""

    def __init__(self):
        super().__init__()
        message = nn.Sequential(nn.Linear(2 * F, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.conv, self.last = gnn.EdgeConv(message, aggr="mean"), nn.Linear(4, C)

    def forward(self, x, edge_index):
        return self.last(self.conv(x, edge_index))


NETS = {
    "gatv2": Attention,
    "by hand": Messages,
    "gcn": lambda: models.GCN(F, 8, 3, C, dropout=0.3),
    "transformer": lambda: gnn.TransformerConv(F, C, edge_dim=2),
    "pna": Single,
    "sage": lambda: models.GraphSAGE(F, 8, 2, C, norm="batch_norm"),
    "edge norm": OfEdges,
}


def data(seed=0, **more):
    """A ring with random chords, in one direction, with weights and attributes of edges."""
    random = torch.Generator().manual_seed(seed)
    ring = torch.arange(N)
    edges = torch.cat([torch.stack([ring, (ring + 1) % N]), torch.stack([(ring + 1) % N, ring])], 1)
    chords = torch.randint(0, N, (2, 40), generator=random)
    edges = torch.cat([edges, chords[:, chords[0] != chords[1]]], 1)
    count = edges.shape[1]
    mask = torch.rand(N, generator=random)
    return {
        "x": torch.randn(N, F, generator=random),
        "edge_index": edges,
        "edge_attr": torch.rand(count, 2, generator=random),
        "edge_weight": 0.5 + torch.rand(count, generator=random),
        "y": torch.randint(0, C, (N,), generator=random),
        "train_mask": mask < 0.6,
        "val_mask": (mask >= 0.6) & (mask < 0.8),
        "test_mask": mask >= 0.8,
        **more,
    }


def problem(name, given=None, **options):
    torch.manual_seed(1)
    net = NETS[name]().double()
    return mldd.problem(GraphProblem, net=net, data=data() if given is None else given, **options)


def plain_loss(p, x, given):
    """The loss of a loop as anybody writes it: batch statistics, no dropout."""
    net = copy.deepcopy(p.net)
    nn.utils.vector_to_parameters(x, net.parameters())
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    values = {key: v.double() if v.dtype == torch.float32 else v for key, v in given.items()}
    out = net(*(values[name] for name in p.arguments.names))
    loss = functional.cross_entropy(out[given["train_mask"]], given["y"][given["train_mask"]])
    g = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    flat = [torch.zeros_like(q) if d is None else d for q, d in zip(net.parameters(), g, strict=True)]
    return loss.detach(), torch.cat([d.flatten() for d in flat])


@pytest.mark.parametrize("name", NETS)
def test_loss_and_gradient_are_those_of_a_plain_loop(name):
    given = data()
    p = problem(name, given)
    before = {key: value.clone() for key, value in p.net.state_dict().items()}
    x = p.initial(0) + 0.05
    value, g = p.objective().value_and_gradient(x)
    expected, gradient = plain_loss(p, x, given)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(g, gradient, rtol=1e-8, atol=1e-10)
    assert all(torch.equal(before[key], v) for key, v in p.net.state_dict().items()), "no evaluation changes a module"
    v, h = torch.linspace(-1, 1, len(x), dtype=x.dtype), 1e-5
    f = p.objective()
    product = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    if name not in ("pna", "gcn", "sage", "gatv2"):  # kinks of ReLU and of maxima
        torch.testing.assert_close(f.hessian_product(x, v), product, rtol=1e-4, atol=1e-6)


def test_a_gradient_is_a_synchronisation_on_one_rank_too():
    p = problem("by hand")
    with counting() as cost:
        p.objective().gradient(p.initial(0))
    assert (cost.gradients, cost.work, cost.synchronisations, cost.exchanges) == (1, 1.0, 1, 0)


@pytest.mark.parametrize(("name", "hops"), [("gatv2", 2), ("by hand", 1), ("gcn", 4), ("transformer", 1)])
def test_hops_are_measured(name, hops):
    """Attention, sums and convolutions reach as many hops as there are layers, and one more for degrees."""
    assert problem(name).hops == hops


@pytest.mark.parametrize("name", ["by hand", "gcn", "transformer"])
def test_a_part_with_its_halo_is_the_mean_over_its_labelled_nodes(name):
    p = problem(name, local="own")
    x, part = p.initial(0) + 0.05, p.spaces.parts(3)
    inside = grow(p.arguments.graph, part == 1, 1) & p.data["train_mask"]
    expected = functional.cross_entropy(p.outputs(x)[inside], p.data["y"][inside])
    found = p.spaces.local_losses(part, [1], 1).value(x[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "hops"), [("by hand", 1), ("gcn", 4)])
def test_parts_with_as_much_overlap_as_hops_add_up_to_the_whole(name, hops):
    p = problem(name, local="restricted")
    f, x = p.objective(), p.initial(0) + 0.05
    errors = []
    for overlap in (0, hops):
        d = p.decomposition(3, overlap)
        errors.append(float((d.shares_of(f) @ d.models(f, x, None).gradient(d.gather(x)) - f.gradient(x)).abs().max()))
    assert errors[1] < 1e-12 and errors[0] > 1e-5, errors


@pytest.mark.parametrize("name", NETS)
def test_clusters_of_single_nodes_are_the_whole_graph(name):
    p = problem(name)
    f, x = p.objective(), p.initial(0) + 0.05
    trivial = GraphLoss(p.model, p.arguments, p.task, (p.pieces.aggregated(np.arange(N)),), Price())
    for a, b in zip(trivial.value_and_gradient(x), f.value_and_gradient(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("local", ["composite", "own"])
def test_local_models_are_first_order_consistent(local):
    p = problem("gatv2", local=local)
    f, x = p.objective(), p.initial(0) + 0.05
    for step in (None, 2):
        g = (f if step is None else sampled(f, step)).gradient(x)
        d = p.decomposition(4, 1)
        found = d.models(f, x, g).gradient(d.gather(x))
        torch.testing.assert_close(found, g.expand_as(found), rtol=1e-10, atol=1e-12)


def test_weights_of_merged_edges_are_what_a_node_of_the_cluster_receives_in_the_mean():
    p = problem("by hand")
    labels = np.arange(N) // 3
    values = p.arguments.aggregated(labels)
    dense = torch.zeros(N, N, dtype=torch.float64)
    dense.index_put_(tuple(p.arguments.edge_index.flip(0)), p.arguments.fields["edge_weight"], accumulate=True)
    mean = functional.one_hot(torch.from_numpy(labels)).double().T / 3
    expected = mean @ dense @ functional.one_hot(torch.from_numpy(labels)).double()
    found = torch.zeros_like(expected).index_put_(
        tuple(values["edge_index"].flip(0)), values["edge_weight"], accumulate=True
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(values["x"], mean @ p.arguments.fields["x"])


def test_other_weights_of_edges_are_another_loss():
    given = data()
    x = problem("by hand", given).initial(0)
    more = {**given, "edge_weight": torch.where(torch.arange(len(given["edge_weight"])) % 2 == 0, 2.0, 1.0)}
    more["edge_weight"] = more["edge_weight"] * given["edge_weight"]
    losses = [float(problem("by hand", one).objective().value(x)) for one in (given, more)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_dropout_is_the_same_for_a_step_and_another_for_the_next():
    p = problem("gatv2")
    f, x = p.objective(), p.initial(0)
    values = [float(sampled(f, step).value(x)) for step in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    assert not hasattr(problem("by hand").objective(), "sample"), "a network without dropout has one loss"


def test_a_mini_batch_is_the_mean_over_some_nodes():
    p = problem("by hand", batch=10)
    f, x = p.objective(), p.initial(0)
    sizes = {len(sampled(f, step).pieces[0].targets) for step in range(5)}
    assert sizes == {10}
    count = len(p.task.fitted) // 10  # of a whole epoch
    mean = sum(sampled(f, step).value(x) for step in range(count)) / count
    chosen = torch.cat([sampled(f, step).pieces[0].nodes[sampled(f, step).pieces[0].rows] for step in range(count)])
    assert len(chosen.unique()) == 10 * count
    torch.testing.assert_close(mean, functional.cross_entropy(p.outputs(x)[chosen], p.data["y"][chosen]))


def test_that_local_losses_know_no_mini_batches_is_said():
    p = problem("by hand", batch=10)
    assert not [note for note in p.details().get("notes", []) if "batch" in note]
    p.decomposition(3)
    assert [note for note in p.details()["notes"] if note.startswith("batch=10 is of the whole loss")]


def test_a_layer_that_sees_all_nodes_is_refused_for_graph_parts_and_can_be_decomposed_by_layers():
    torch.manual_seed(0)
    p = GraphProblem(GlobalNorm().double(), data(), division=Division(local="own"))
    with pytest.raises(NotLocalError, match="GraphNorm.*subdomains=layers"):
        p.decomposition(3)
    d = replace(p, division=Division(subdomains="layers")).decomposition(3)
    assert [len(s.indices) for s in d.subdomains] == [28, 12, 15]


@pytest.mark.parametrize(
    ("more", "kind", "measure"),
    [
        ({}, "classification", "accuracy"),
        ({"y": torch.randn(N)}, "regression", "rmse"),
        ({"y": torch.randint(0, 2, (N, C)).float()}, "labels", "accuracy"),
        ({"y": torch.randn(N, C)}, "regression", "rmse"),
    ],
)
def test_the_task_is_what_the_labels_say(more, kind, measure):
    net = nn.Sequential(nn.Linear(F, 1 if more.get("y", torch.ones(1, 1)).dim() == 1 and more else C))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, edge_index):
            return self.net(x) if more.get("y", x).dim() == 2 else self.net(x)[:, 0]

    given = data(**more)
    p = GraphProblem(Net().double(), given)
    x = p.initial(0)
    out, train = p.outputs(x), given["train_mask"]
    losses = {
        "classification": functional.cross_entropy,
        "regression": functional.mse_loss,
        "labels": functional.binary_cross_entropy_with_logits,
    }
    target = given["y"][train]
    target = target if kind == "classification" else target.double()
    torch.testing.assert_close(p.objective().value(x), losses[kind](out[train], target))
    assert p.task.kind == kind and {f"test_{measure}", "validation_loss"} <= set(p.metrics(x))


def test_an_error_of_a_network_with_a_number_per_node_is_that_of_one_with_a_column():
    class Squeezed(Messages):
        def forward(self, x, edge_index, edge_weight):
            return super().forward(x, edge_index, edge_weight)[:, 0]

    torch.manual_seed(0)
    problem = GraphProblem(Squeezed(), data(y=torch.randn(N)))
    x = problem.initial()
    train = problem.task.fitted
    errors = problem.outputs(x)[problem.task.items[train]] - problem.task.targets[train].float()
    assert problem.metrics(x)["train_rmse"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)


def test_a_network_stays_where_it_is():
    net, other = Messages(), Messages()
    assert {p.device for p in GraphProblem(net, data()).net.parameters()} == {torch.device("cpu")}
    # without a GPU: where the network is decides, and not the processor
    problem = GraphProblem(other, data())
    object.__setattr__(problem, "net", Messages().to("meta"))
    del vars(problem)["_device"]
    assert problem._device == torch.device("meta")


def test_a_layer_that_keeps_the_edges_of_the_whole_graph_is_refused_on_any_other():
    class Keeping(nn.Module):
        def __init__(self, cached):
            super().__init__()
            self.first, self.second = gnn.GCNConv(F, 4, cached=cached), gnn.GCNConv(4, C)

        def forward(self, x, edge_index):
            return self.second(self.first(x, edge_index).tanh(), edge_index)

    p = GraphProblem(Keeping(True), data())
    again = GraphProblem(copy.deepcopy(p.net), data())
    again.net.first.cached = False
    x = p.initial()
    for _ in range(2):  # the second time from what is kept
        torch.testing.assert_close(p.objective().gradient(x), again.objective().gradient(x))
    others = (
        lambda: p.hierarchy(2),
        lambda: p.decomposition(2),
        lambda: p.predict(x, data()),
        lambda: sampled(replace(p, batch=10).objective(), 0),
    )
    for other in others:
        with pytest.raises(ValueError, match="'first' of Keeping keeps .* GCNConv with cached=True, .* cached=False"):
            other()
    assert again.hierarchy(2) and again.decomposition(2)


def test_a_problem_is_known_by_its_data():
    given = data()
    adjacency = torch.sparse_coo_tensor(given["edge_index"], given["edge_weight"], (N, N)).coalesce()

    def identity(**changes):
        return problem("by hand", {**given, "adj": adjacency, **changes}).identity()

    assert identity() == identity(adj=adjacency.to_sparse_csr()) != identity(adj=2 * adjacency)
    others = ({"x": given["x"] + 1e-6}, {"y": given["y"].flip(0)}, {"more": given["y"]}, {"x": given["x"].bfloat16()})
    assert len({identity(), *(identity(**change) for change in others)}) == 1 + len(others)
    assert identity() == replace(problem("by hand", {**given, "adj": adjacency}), seed=3).identity()


def test_nodes_without_a_label_do_not_count():
    given = data()
    given["y"] = torch.where(torch.arange(N) % 7 == 0, -1, given["y"])
    p = problem("by hand", given)
    x = p.initial(0)
    there = given["train_mask"] & (given["y"] >= 0)
    expected = functional.cross_entropy(p.outputs(x)[there], given["y"][there])
    torch.testing.assert_close(p.objective().value(x), expected)


def test_links_are_inner_products_of_states():
    pairs = torch.randint(0, N, (2, 50), generator=torch.Generator().manual_seed(3))
    given = {"edge_label_index": pairs, "edge_label": (torch.arange(50) % 2).float(), **data()}
    p = problem("by hand", given, local="own")
    x = p.initial(0)
    z = p.outputs(x)
    linked = (torch.arange(50) % 2).double()
    expected = functional.binary_cross_entropy_with_logits((z[pairs[0]] * z[pairs[1]]).sum(1), linked)
    torch.testing.assert_close(p.objective().value(x), expected)
    d = p.decomposition(3)
    inside = p.spaces.parts(3)[pairs[0]] == 0
    z = (z[pairs[0]] * z[pairs[1]]).sum(1)[inside]
    expected = functional.binary_cross_entropy_with_logits(z, linked[inside])
    torch.testing.assert_close(d.models(p.objective(), x, None).value(x.expand(3, -1))[0], expected)


def test_a_loss_of_the_network_is_decomposed_by_layers_alone():
    given = data()

    def loss(net, data):
        out = net(data["x"].double(), data["edge_index"], data["edge_weight"].double())
        return functional.cross_entropy(out, data["y"])

    p = problem("by hand", given, loss=loss)
    x = p.initial(0)
    torch.testing.assert_close(p.objective().value(x), functional.cross_entropy(p.outputs(x), given["y"]))
    with pytest.raises(ValueError, match="graph parts need loss.outputs, targets."):
        p.decomposition(2)
    assert replace(p, division=Division(subdomains="layers")).decomposition(2).parts == 2


def test_a_loss_that_is_no_mean_is_not_shared_out():
    p = problem("by hand", loss=lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="sum"))
    assert float(p.objective().value(p.initial(0))) > 50
    with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
        replace(p, batch=10).objective()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": None}, "`data` must have x, edge_index, edge_weight for Messages"),
        ({"x": torch.full((N, F), torch.nan)}, "`x` must be finite, got another value at node 0"),
        ({"y": torch.full((N,), -1)}, "must have a labelled training node"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "`y` must have a row for each of 150 nodes"),
        ({"edge_index": torch.full((2, 390), N)}, "`edge_index` must have nodes 0..149"),
        ({"train_mask": torch.ones(N, 10, dtype=torch.bool)}, "choose one: data.train_mask"),
    ],
)
def test_data_that_cannot_be_used_are_refused(more, message):
    given = {key: value for key, value in data(**more).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        problem("by hand", given).objective()


def test_what_is_not_used_is_said():
    notes = problem("gcn").details()["notes"]
    assert notes == ["not used: edge_attr"] or "edge_attr" in notes[0]


def test_that_parts_are_a_loop_is_said():
    said = "subdomains are evaluated one after the other"
    p = problem("gatv2")
    assert not any(said in note for note in p.details()["notes"])
    p.decomposition(3)
    assert any(said in note for note in p.details()["notes"])


def test_the_module_that_is_handed_out_predicts_what_was_measured():
    p = problem("gatv2")
    result = minimise(p.objective(), p.initial(0), Adam(0.02), stop=Stop(40))
    net = p.module(result.x).eval()
    values = {name: p.arguments.fields[name] for name in p.arguments.names}
    with torch.no_grad():
        out = net(**values)
    assert net is p.net
    # the running variance is that of a sample, the batch one that of the population
    torch.testing.assert_close(out, p.outputs(result.x), rtol=0.05, atol=0.05)
    right = (out.argmax(1) == p.data["y"])[p.data["train_mask"]].double().mean()
    assert float(right) == pytest.approx(p.metrics(result.x)["train_accuracy"], abs=0.03)
    assert p.metrics(result.x)["train_accuracy"] > 0.45


def test_decomposed_and_multilevel_methods_train_it():
    p = problem("sage")
    x = p.initial(0)
    f = p.objective()
    start = float(f.value(x))
    solver = SchwarzAdaGrad(p.decomposition(4, 1), p.hierarchy(2))
    for method in (MultilevelLBFGS(p.hierarchy(2), 5), solver):
        assert float(f.value(minimise(f, x, method, stop=Stop(15)).x)) < 0.9 * start


def test_another_seed_is_another_start_and_the_first_is_the_networks_own():
    p = problem("gcn")
    own = torch.cat([q.detach().flatten() for q in p.net.parameters()])
    assert torch.equal(p.initial(0), own)
    assert not torch.equal(p.initial(1), own) and torch.equal(p.initial(1), p.initial(1))
