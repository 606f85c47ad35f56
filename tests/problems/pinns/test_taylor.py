"""Derivatives of networks along input coordinates: against nested automatic differentiation, all ways of evaluating."""

import itertools

import pytest
import torch

from mldd.problems.pinns import TaylorNetwork

F64 = {"dtype": torch.float64}
NETWORKS = [
    TaylorNetwork((2, 5, 7, 2)),
    TaylorNetwork((2, 6, 1)),
    TaylorNetwork((2, 6, 6, 6, 2), "residual", 1.5),
    TaylorNetwork((2, 6, 1), "residual"),
]
IDS = ["dense", "shallow", "residual", "shallow-residual"]
ORDERS = [orders for orders in itertools.product((0, 1, 2), repeat=2)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def start(net, *lead):
    """Parameters none of which is zero."""
    return net.initial(1).expand(*lead, -1) + 0.1 * draw(*lead, net.layout.size)


def output(net, parameters, points):
    """The network as its formula says, for one vector of parameters, by torch.tanh."""
    each, state = iter(parameters), points
    for layer in range(net.layers):
        weight, bias = next(each), next(each)
        hidden = layer + 1 < net.layers
        slope = 10.0 * next(each) if hidden and net.kind == "residual" else 1.0
        z = slope * (state @ weight.T + bias)
        if not hidden:
            return z
        step = net.horizon / (net.layers - 2) if layer else 1.0
        state = state + step * torch.tanh(z) if layer and net.kind == "residual" else torch.tanh(z)
    raise AssertionError


def nested(net, parameters, points, orders):
    """Streams (value, first, second derivatives) of one network, shape (kinds, m, outputs), differentiable."""
    points = points.clone().requires_grad_()
    columns = output(net, parameters, points).unbind(1)

    def along(column, k):
        return torch.autograd.grad(column.sum(), points, create_graph=True)[0][:, k]

    kinds = [torch.stack(columns, 1)]
    kinds += [torch.stack([along(c, k) for c in columns], 1) for k, order in enumerate(orders) if order]
    kinds += [torch.stack([along(along(c, k), k) for c in columns], 1) for k, order in enumerate(orders) if order == 2]
    return torch.stack(kinds)


def flat(jets):
    return torch.stack([kind for kind in (jets.value, *jets.first, *jets.second) if kind is not None], -3)


def scalar(kinds):
    """Something that is nonlinear in all derivatives and different at all points."""
    weights = torch.linspace(0.5, 1.5, kinds.numel(), **F64).view(kinds.shape)
    return (torch.sin(kinds) * weights + kinds**2).sum()


@pytest.mark.parametrize("net", NETWORKS, ids=IDS)
@pytest.mark.parametrize("orders", ORDERS)
def test_equals_nested_differentiation(net, orders):
    x, points = start(net), draw(5, 2, seed=2)
    leaves = net.layout.leaves(x)
    expected = nested(net, leaves, points, orders)
    gradient = net.layout.pack(torch.autograd.grad(scalar(expected), leaves))
    torch.testing.assert_close(flat(net.jets(net.layout.views(x), points, orders)), expected.detach())

    jets = net.jets(leaves, points, orders)
    assert [kind is not None for kind in jets.first] == [order > 0 for order in orders]
    assert [kind is not None for kind in jets.second] == [order > 1 for order in orders]
    found = torch.autograd.grad(scalar(flat(jets)), leaves, retain_graph=True)
    torch.testing.assert_close(net.layout.pack(found), gradient)
    again = torch.autograd.grad(scalar(flat(jets)), leaves)  # with what the first sweep back has released
    torch.testing.assert_close(net.layout.pack(again), gradient)

    out = torch.full_like(x, torch.nan)
    value = net.at(points, orders).pullback(net.layout.views(x), lambda jets: scalar(flat(jets)), net.layout.views(out))
    torch.testing.assert_close(value, scalar(expected).detach())
    torch.testing.assert_close(out, gradient)


@pytest.mark.parametrize("net", NETWORKS, ids=IDS)
@pytest.mark.parametrize("own_points", [False, True])
def test_batches_are_their_rows(net, own_points):
    x, points, orders = start(net, 3), draw(*((3,) if own_points else ()), 4, 2, seed=3), (1, 2)
    jets = flat(net.jets(net.layout.views(x), points, orders))
    out = torch.empty_like(x)
    net.at(points, orders).pullback(net.layout.views(x), lambda jets: scalar(flat(jets)[1]), net.layout.views(out))
    for k, row in enumerate(x):
        of_row = net.jets(net.layout.views(row), points[k] if own_points else points, orders)
        torch.testing.assert_close(jets[k], flat(of_row))
    assert int((out != 0).any(1).sum()) == 1
    alone = torch.empty_like(x[1])
    single = net.at(points[1] if own_points else points, orders)
    single.pullback(net.layout.views(x[1]), lambda jets: scalar(flat(jets)), net.layout.views(alone))
    torch.testing.assert_close(out[1], alone)


def test_one_network_at_batches_of_points():
    net, points = NETWORKS[0], draw(3, 4, 2)
    x = start(net)
    leaves = net.layout.leaves(x)
    jets = flat(net.jets(leaves, points, (2, 1)))
    expected = torch.stack([nested(net, leaves, rows, (2, 1)) for rows in points])
    torch.testing.assert_close(jets, expected)
    ours, theirs = (torch.autograd.grad(scalar(kinds), leaves) for kinds in (jets, expected))
    torch.testing.assert_close(net.layout.pack(ours), net.layout.pack(theirs))


@pytest.mark.parametrize("net", NETWORKS[::2], ids=IDS[::2])
def test_hessian_products(net):
    x, v, points, orders = start(net), draw(net.layout.size, seed=5), draw(5, 2, seed=2), (2, 1)

    def product(propagate):
        leaves = net.layout.leaves(x)
        g = torch.autograd.grad(scalar(propagate(leaves)), leaves, create_graph=True)
        slope = sum((a * b).sum() for a, b in zip(g, net.layout.views(v), strict=True))
        return net.layout.pack(torch.autograd.grad(slope, leaves))

    expected = product(lambda leaves: nested(net, leaves, points, orders))
    torch.testing.assert_close(product(lambda leaves: flat(net.jets(leaves, points, orders))), expected)


def test_parameters_that_need_no_gradient():
    net, points = NETWORKS[2], draw(5, 2)
    leaves = net.layout.leaves(start(net))
    some = [leaf if k % 2 else leaf.detach() for k, leaf in enumerate(leaves)]
    for create in (False, True):
        expected = torch.autograd.grad(scalar(flat(net.jets(leaves, points, (1, 2)))), leaves)
        found = torch.autograd.grad(scalar(flat(net.jets(some, points, (1, 2)))), some[1::2], create_graph=create)
        for a, b in zip(found, expected[1::2], strict=True):
            torch.testing.assert_close(a, b)


def test_evaluations_do_not_share_buffers():
    net, points = NETWORKS[2], draw(5, 2)
    streams = net.at(points, (1, 2))
    leaves = [net.layout.leaves(start(net) * factor) for factor in (1.0, 0.5)]
    both = [streams.jets(each) for each in leaves]
    gradients = [torch.autograd.grad(scalar(flat(jets)), each) for jets, each in zip(both, leaves, strict=True)]
    for each, gradient in zip(leaves, gradients, strict=True):
        expected = torch.autograd.grad(scalar(flat(streams.jets(each))), each)
        torch.testing.assert_close(net.layout.pack(gradient), net.layout.pack(expected))
    kept = flat(both[0]).clone()
    streams.jets(leaves[1])
    assert torch.equal(flat(both[0]), kept)


def test_the_same_tensors_with_new_values():
    net, points = NETWORKS[0], draw(5, 2)
    x = start(net)
    streams, views = net.at(points, (2, 2)), tuple(net.layout.views(x))
    for factor in (1.0, 0.5):
        x *= factor
        evaluation = streams.forward(views)
        found = evaluation.streams.clone()
        evaluation.release()
        torch.testing.assert_close(found, streams.graph(net.layout.views(x)))


def test_small_arguments_and_single_precision():
    net, points = NETWORKS[0], 1e-9 * draw(5, 2)
    torch.testing.assert_close(
        flat(net.jets(net.layout.views(start(net)), points, (2, 2))),
        nested(net, net.layout.leaves(start(net)), points, (2, 2)).detach(),
        rtol=0,
        atol=1e-14,
    )
    x, points = start(net), draw(5, 2)
    exact = flat(net.jets(net.layout.views(x), points, (2, 2)))
    single = flat(net.jets(net.layout.views(x.float()), points.float(), (2, 2)))
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 3e-5


def test_no_tensor_is_made_elsewhere():
    """On a device without data, every tensor that meets another must have been made on it."""
    net = NETWORKS[2]
    points, x = torch.empty(5, 2, device="meta"), torch.empty(3, net.layout.size, device="meta")
    out = torch.empty_like(x)
    value = net.at(points, (2, 1)).pullback(net.layout.views(x), lambda u: u.second[0].sum(), net.layout.views(out))
    assert value.device.type == "meta"


def test_start():
    net = NETWORKS[2]
    tensors = net.layout.views(net.initial(3))
    assert [tuple(t.shape) for t in tensors] == [
        (6, 2),
        (6,),
        (1,),
        (6, 6),
        (6,),
        (1,),
        (6, 6),
        (6,),
        (1,),
        (2, 6),
        (2,),
    ]
    for weight, bias, scale in net.linear(tensors):
        assert 0 < float(weight.abs().max()) <= (6.0 / sum(weight.shape)) ** 0.5
        assert not bool(bias.any())
        assert scale is None or float(scale) == 0.1
    assert torch.equal(net.initial(3), net.initial(3)) and not torch.equal(net.initial(3), net.initial(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaylorNetwork((2, 3)), "`widths` must be three or more"),
        (lambda: TaylorNetwork((2, 0, 1)), "`widths` must be"),
        (lambda: TaylorNetwork((2, 3, 1), "deep"), "`kind` must be one of dense, residual"),
        (lambda: TaylorNetwork((2, 3, 4, 1), "residual"), "must be equal"),
        (lambda: TaylorNetwork((2, 3, 1), horizon=0.0), "`horizon` must be > 0"),
        (lambda: TaylorNetwork((2, 3, 1)).at(torch.zeros(5, 1), (2, 2)), r"`points` must have shape \(m, 2\)"),
        (lambda: TaylorNetwork((2, 3, 1)).at(torch.zeros(5, 2), (2,)), "`orders` must be 2 numbers"),
        (lambda: TaylorNetwork((2, 3, 1)).at(torch.zeros(5, 2), (2, 3)), "`orders` must be 2 numbers"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
