"""What networks do in training mode alone, and to what they are given: used as in a plain loop, said, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from mldd.problems.modules import GraphProblem
from mldd.problems.modules.one_graph.training_mode import check_shared_noise, is_noisy
from tests.problems.modules.one_graph.test_graph_problem import NETS, C, F, data

pytest.importorskip("torch_geometric")


def means(x, edge_index):
    """Return the sums of what neighbours send, with the node's own."""
    return x.index_add(0, edge_index[1], x[edge_index[0]])


class Linear(nn.Module):
    """Sums over neighbours, a linear map, and something of a test's own before it."""

    def __init__(self, own=lambda net, x, edge_index: (x, edge_index)):
        super().__init__()
        self.own, self.map = own, nn.Linear(F, C)

    def forward(self, x, edge_index):
        return self.map(means(*self.own(self, x, edge_index)))


def without_edges(net, x, edge_index):
    """Leave out every other edge in training, as drawn."""
    kept = torch.rand(edge_index.shape[1]) < 0.5 if net.training else slice(None)
    return x, edge_index[:, kept]


def with_noise(net, x, edge_index):
    return (x + torch.randn_like(x) if net.training else x), edge_index


def by_channel(net, x, edge_index):
    return functional.dropout1d(x[None], 0.5, net.training)[0], edge_index


@pytest.mark.parametrize("own", [without_edges, with_noise, by_channel])
def test_random_numbers_of_any_kind_are_drawn_for_every_step(own):
    """The loss of a step is that of a plain call in training mode, with the generator as the step has seeded it."""
    p = GraphProblem(Linear(own).double(), given := data())
    f, x = p.objective(), p.initial()
    samples = [f.sample(step) for step in range(3)]
    values = [float(sample.value(x)) for sample in samples]
    assert len(set(values)) == 3 and values == [float(f.sample(step).value(x)) for step in range(3)]
    net, train = copy.deepcopy(p.net).train(), given["train_mask"]
    for sample, value in zip(samples, values, strict=True):
        torch.manual_seed(hash((sample.noise.seed, sample.noise.step)) % 2**63)
        expected = functional.cross_entropy(net(given["x"].double(), given["edge_index"])[train], given["y"][train])
        assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    quiet = functional.cross_entropy(net.eval()(given["x"].double(), given["edge_index"])[train], given["y"][train])
    assert p.metrics(x)["train_loss"] == pytest.approx(float(quiet), rel=1e-12)


def of_rows(net, x, edge_index):
    return functional.dropout(x, 0.5, net.training), edge_index


def of_weights(net, x, edge_index):
    """Drop features as a whole: as many numbers are drawn whatever the graph."""
    return x * functional.dropout(torch.ones(F - 1), 0.5, net.training).sum(), edge_index


@pytest.mark.parametrize("own", [without_edges, with_noise, of_rows, of_weights])
def test_random_numbers_that_ranks_would_draw_differently_are_refused(own):
    """On several ranks those are the same that are drawn by node or edge, or whose number is that of one rank."""
    p = GraphProblem(Linear(own).double(), data())
    given = (p.model, p.arguments, p.initial())
    assert is_noisy(*given)
    if own in (of_rows, of_weights):
        check_shared_noise(*given)
    else:
        with pytest.raises(ValueError, match="to be the same on several ranks, got others .* use one rank"):
            check_shared_noise(*given)


def test_a_network_that_is_another_one_in_training_mode_is_said():
    net = Linear(lambda net, x, edge_index: (x if net.training else 3 * x, edge_index))
    assert any("something else in training mode" in note for note in GraphProblem(net, data()).details()["notes"])
    for name in NETS:
        notes = GraphProblem(NETS[name](), data()).details().get("notes", ())
        assert not any("training mode" in note for note in notes), name


def scaled(net, x, edge_index):
    return x.mul_(0.5), edge_index


def renumbered(net, x, edge_index):
    edge_index[0, 0] = 1
    return x, edge_index


@pytest.mark.parametrize(("own", "name"), [(scaled, "x"), (renumbered, "edge_index")])
def test_a_network_that_writes_to_its_arguments_is_refused(own, name):
    """Every evaluation would be one of other data, and the user's own would be changed."""
    p = GraphProblem(Linear(own), data())
    with pytest.raises(ValueError, match=f"forward of Linear must leave its arguments .* writes to {name} in place"):
        p.objective()
    kept = GraphProblem(Linear(lambda net, x, edges: own(net, x.clone(), edges.clone())), data())
    first = float(kept.objective().value(kept.initial()))
    assert first == float(kept.objective().value(kept.initial()))


def test_a_loss_that_writes_to_the_graph_is_refused():
    given = data()

    def loss(net, graph):
        graph["x"] *= 2
        return net(graph["x"], graph["edge_index"]).square().mean()

    p = GraphProblem(Linear(), given, loss=loss)
    with pytest.raises(ValueError, match="`loss` must leave its arguments as they are, .* writes to x in place"):
        p.objective().value(p.initial())


class Counted(nn.Module):
    """A count stands before the weights among the parameters."""

    def __init__(self):
        super().__init__()
        self.count, self.map = nn.Parameter(torch.tensor([3]), requires_grad=False), nn.Linear(F, C)

    def forward(self, x, edge_index):
        return self.map(x.float() * self.count)


def test_whole_numbers_among_parameters_do_not_round_features():
    p = GraphProblem(Counted(), given := data())
    outputs = p.net(given["x"], given["edge_index"])
    expected = functional.cross_entropy(outputs[given["train_mask"]], given["y"][given["train_mask"]])
    torch.testing.assert_close(p.objective().value(p.initial()), expected.detach())


class Numbered(nn.Module):
    def __init__(self):
        super().__init__()
        self.states, self.map = nn.Embedding(60, 4), nn.Linear(4, C)

    def forward(self, n_id, edge_index):
        return self.map(means(self.states(n_id), edge_index))


def test_a_network_without_an_argument_of_real_numbers_is_described():
    given = data()
    count = len(given["x"])
    p = GraphProblem(Numbered(), {**given, "x": None, "n_id": torch.arange(count) % 60, "num_nodes": count})
    assert p.details()["arguments"] == ["n_id", "edge_index"] and float(p.objective().value(p.initial())) > 0


def test_complex_parameters_are_refused():
    net = Linear()
    net.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"must be real floating point numbers, got torch.complex64 in Linear"):
        GraphProblem(net, data())


def test_a_sequence_of_torch_geometric_is_called_by_the_names_that_it_was_made_with():
    from torch_geometric.nn import GraphConv, Sequential

    net = Sequential("x, edge_index", [(GraphConv(F, 4), "x, edge_index -> x"), nn.Tanh(), nn.Linear(4, C)])
    p = GraphProblem(net, given := data())
    outputs = net(given["x"], given["edge_index"])
    expected = functional.cross_entropy(outputs[given["train_mask"]], given["y"][given["train_mask"]])
    torch.testing.assert_close(p.objective().value(p.initial()), expected.detach())
    assert p.arguments.names == ("x", "edge_index") and p.hops == 1
