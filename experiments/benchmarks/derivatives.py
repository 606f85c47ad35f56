"""Gradients of losses with second derivatives of networks: the ways that torch offers, beside the sweeps of mldd.

    python experiments/benchmarks/derivatives.py [--case windows|burgers] [--dtype float64] [--repeats 7] [--compile]

Cases: ``windows``, 4 networks 1-32-32-1 at 100 points each, the loss of -u'' = 1; ``burgers``, one network 2-20x8-1 at
10,000 points. The ways: nested reverse differentiation; torch.func, forward over forward for the derivatives and
reverse for the gradient; Taylor coefficients by torch's operations and reverse; the two hand-written sweeps, all points
at once and a thousand at a time. ``--compile`` adds torch.compile of the Taylor coefficients, which needs a C++
compiler and 10 to 75 seconds. CPU time of this process, one thread, median over interleaved repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mldd.problems.pinns import Jets, TaylorNetwork
from mldd.ranks import SERIAL, prepare

NU = 0.01 / torch.pi


def burgers(u: Jets) -> Tensor:
    """Return ``sum (u_t + u u_x - nu u_xx)^2``."""
    return (u.first[0] + u.value * u.first[1] - NU * u.second[1]).square().sum()


def poisson(u: Jets) -> Tensor:
    """Return ``sum (u'' + 1)^2``."""
    return (u.second[0] + 1.0).square().sum()


@dataclass(frozen=True)
class Case:
    """A network, points, and a loss of values and derivatives."""

    net: TaylorNetwork
    x: Tensor
    points: Tensor
    orders: tuple[int, ...]
    loss: Callable[[Jets], Tensor]

    @staticmethod
    def of(name: str, dtype: torch.dtype) -> Case:
        """Return a case by its name."""
        generator = torch.Generator().manual_seed(0)
        if name == "windows":
            net = TaylorNetwork((1, 32, 32, 1))
            x = torch.stack([net.initial(k) for k in range(4)]).to(dtype)
            return Case(net, x, torch.rand(4, 100, 1, generator=generator).to(dtype), (2,), poisson)
        net = TaylorNetwork((2, *[20] * 8, 1))
        points = torch.rand(10_000, 2, generator=generator).to(dtype)
        return Case(net, net.initial(0).to(dtype), points, (1, 2), burgers)

    def output(self, tensors: list[Tensor], points: Tensor) -> Tensor:
        """Return the value of the network by torch.tanh."""
        state, layers = points, list(self.net.linear(tensors))
        for layer, (weight, bias, _) in enumerate(layers):
            state = torch.matmul(state, weight.transpose(-1, -2)) + bias.unsqueeze(-2)
            state = torch.tanh(state) if layer + 1 < len(layers) else state
        return state

    # -------------------------------------------------------------------------------- the ways

    def nested(self) -> Tensor:
        """Differentiate values by the points in reverse, twice, then by the parameters."""
        leaves, points = self.net.layout.leaves(self.x), self.points.clone().requires_grad_()
        u = self.output(leaves, points)
        (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        first = [slopes[..., k : k + 1] for k in range(len(self.orders))]
        second = [
            torch.autograd.grad(first[k].sum(), points, create_graph=True)[0][..., k : k + 1] if order == 2 else None
            for k, order in enumerate(self.orders)
        ]
        loss = self.loss(Jets(u, tuple(first), tuple(second)))
        return self.net.layout.pack(torch.autograd.grad(loss, leaves, materialize_grads=True))

    def functional(self) -> Tensor:
        """Differentiate by the points forward, over forward for the second derivatives."""
        leaves = self.net.layout.leaves(self.x)
        first: list[Tensor | None] = []
        second: list[Tensor | None] = []

        def value(at: Tensor) -> Tensor:
            return self.output(leaves, at)

        u = value(self.points)
        for k, order in enumerate(self.orders):
            along = torch.zeros_like(self.points)
            along[..., k] = 1.0

            def slope(at: Tensor, along: Tensor = along) -> Tensor:
                return torch.func.jvp(value, (at,), (along,))[1]

            if order == 2:
                a, b = torch.func.jvp(slope, (self.points,), (along,))
            else:
                a, b = slope(self.points), None
            first.append(a)
            second.append(b)
        loss = self.loss(Jets(u, tuple(first), tuple(second)))
        return self.net.layout.pack(torch.autograd.grad(loss, leaves, materialize_grads=True))

    def taylor(self, compiled: bool = False) -> Callable[[], Tensor]:
        """Propagate Taylor coefficients by torch's operations, and differentiate in reverse."""
        streams = self.net.at(self.points, self.orders)
        streams.inputs.sum()  # made once, outside the clock

        def loss(*leaves: Tensor) -> Tensor:
            return self.loss(streams.split(streams.graph(leaves)))

        way = torch.compile(loss) if compiled else loss

        def gradient() -> Tensor:
            leaves = self.net.layout.leaves(self.x)
            return self.net.layout.pack(torch.autograd.grad(way(*leaves), leaves, materialize_grads=True))

        return gradient

    def sweeps(self, most: int) -> Callable[[], Tensor]:
        """Propagate forward and back by hand, at most `most` points at a time."""
        count = max(1, -(-self.points.shape[-2] // most))
        pieces = [self.net.at(points, self.orders) for points in self.points.tensor_split(count, -2)]
        views = tuple(self.net.layout.views(self.x))

        def gradient() -> Tensor:
            total, part = torch.zeros_like(self.x), torch.empty_like(self.x)
            out = self.net.layout.views(part)
            for piece in pieces:
                piece.pullback(views, self.loss, out)
                total += part
            return total

        return gradient


def medians(ways: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Return the median CPU milliseconds of every way; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin, calls = time.process_time(), 0
            while time.process_time() - begin < 0.05:
                way()
                calls += 1
            times[name].append(1e3 * (time.process_time() - begin) / calls)
    return {name: statistics.median(row) for name, row in times.items()}


def measure(name: str, dtype: str, repeats: int, compiled: bool = False) -> dict[str, float]:
    """Measure one case; the gradients must agree."""
    case = Case.of(name, getattr(torch, dtype))
    ways = {
        "nested reverse": case.nested,
        "torch.func": case.functional,
        "Taylor, autograd": case.taylor(),
        "sweeps": case.sweeps(10**9),
        "sweeps, 1000 points at a time": case.sweeps(1000),
    }
    if compiled:
        begin = time.perf_counter()
        ways["Taylor, torch.compile"] = case.taylor(compiled=True)
        try:
            ways["Taylor, torch.compile"]()
            print(f"torch.compile took {time.perf_counter() - begin:.1f} s")
        except Exception as error:  # no compiler, or one that fails: the others are still worth a table
            print(f"torch.compile failed: {str(error).splitlines()[0]}")
            del ways["Taylor, torch.compile"]
    expected = case.nested()
    for way, gradient in ways.items():
        error = float((gradient() - expected).norm() / expected.norm())
        if error > (1e-10 if dtype == "float64" else 1e-3):
            raise AssertionError(f"{way} differs from nested differentiation by {error:.1e}")
    return medians(ways, repeats)


def main() -> None:
    """Print a table per case and type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("windows", "burgers"), action="append")
    parser.add_argument("--dtype", choices=("float32", "float64"), action="append")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    for name in options.case or ("windows", "burgers"):
        for dtype in options.dtype or ("float32", "float64"):
            print(f"{name} {dtype}: CPU ms per gradient")
            for way, ms in measure(name, dtype, options.repeats, options.compile).items():
                print(f"  {ms:9.3f}  {way}")


if __name__ == "__main__":
    main()
