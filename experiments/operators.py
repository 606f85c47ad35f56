"""Operator networks (DeepONets) for the experiments, and samples of two operators whose values are known exactly.

"antiderivative" takes u to its integral from 0 on [0, 1], u being a random sum of sines and cosines. "advection" takes
the velocity a > 0 to the solution of ``ds/dt + a(x) ds/dx = 0`` on the unit square, with ``s = sin(pi x)`` at t = 0 and
``s = sin(pi t / 2)`` at x = 0, by its characteristics. Every sample depends on its number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SENSORS = 40  # values of the input function, and coordinates of the output, per axis
TERMS = 8
FINE = 4001


@dataclass(frozen=True)
class Samples:
    """Input functions at sensors, shape (k, m), points, shape (q, d), and output functions there, shape (k, q)."""

    functions: Tensor
    points: Tensor
    values: Tensor

    def error(self, found: Tensor) -> float:
        """Return the relative error in the 2-norm over all functions and points."""
        return float((found - self.values).norm() / self.values.norm())


def antiderivative(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return u and its integral from 0, at equidistant points."""
    x, k = np.linspace(0.0, 1.0, SENSORS), np.arange(1, TERMS + 1)
    sines, cosines = np.sin(np.pi * np.outer(k, x)), np.cos(np.pi * np.outer(k, x))
    a, b = coefficients[0] / k, coefficients[1] / k
    return a @ sines + b @ cosines, (a / (np.pi * k)) @ (1.0 - cosines) + (b / (np.pi * k)) @ sines


def advection(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the velocity, and the solution on a grid of t and x: what travels keeps its value."""
    fine, k = np.linspace(0.0, 1.0, FINE), np.arange(1, TERMS + 1)
    phase = np.outer(k, fine) * np.pi
    velocity = np.exp(0.3 * (coefficients[0] / k @ np.sin(phase) + coefficients[1] / k @ np.cos(phase)))
    cells = 0.5 * (1.0 / velocity[1:] + 1.0 / velocity[:-1]) / (FINE - 1)
    arrival = np.concatenate([[0.0], np.cumsum(cells)])  # of what was at x = 0 at time 0
    axis = np.linspace(0.0, 1.0, SENSORS)
    late = axis[:, None] - np.interp(axis, fine, arrival)[None, :]
    from_start = np.sin(np.pi * np.interp(-late, arrival, fine))
    solution = np.where(late >= 0.0, np.sin(0.5 * np.pi * late), from_start)
    return np.interp(axis, fine, velocity), solution.reshape(-1)


def samples(name: str, numbers: range) -> Samples:
    """Return the samples of an operator with the given numbers, in float64."""
    made = {"antiderivative": antiderivative, "advection": advection}[name]
    rows = [made(np.random.default_rng(number).standard_normal((2, TERMS))) for number in numbers]
    axis = torch.linspace(0.0, 1.0, SENSORS, dtype=torch.float64)
    points = axis[:, None] if name == "antiderivative" else torch.cartesian_prod(axis, axis)
    functions, values = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return Samples(functions, points, values)


class Residual(torch.nn.Module):
    """Linear, residual steps of an equation in time, linear."""

    def __init__(self, inputs: int, width: int, blocks: int, horizon: float, outputs: int = 10) -> None:
        super().__init__()
        self.first, last = torch.nn.Linear(inputs, width), torch.nn.Linear(width, outputs)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(blocks))
        self.last = last  # after the blocks, so that parameters are in the order of layers
        self.dt = horizon / blocks

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        y = torch.tanh(self.first(x))
        for block in self.blocks:
            y = y + self.dt * torch.tanh(block(y))
        return self.last(y)


class DeepONet(torch.nn.Module):
    """``G(u)(y) = sum_k b_k(u) t_k(y)`` with a branch and a trunk network, both residual."""

    def __init__(self, inputs: int, axes: int, width: int, blocks: int, horizon: float) -> None:
        super().__init__()
        self.branch = Residual(inputs, width, blocks, horizon, width)
        self.trunk = Residual(axes, width, blocks, horizon, width)

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        """Return the output functions at all points, shape (k, q)."""
        branch: Tensor = self.branch(functions)
        trunk: Tensor = self.trunk(points)
        return branch @ trunk.t() / math.sqrt(trunk.shape[1])


class OperatorMisfit:
    """The mean squared error of a DeepONet over all functions and points, over the mean square of the outputs."""

    def __init__(self, data: Samples) -> None:
        self.data, self.scale = data, float(data.values.square().mean())

    def __call__(self, net: torch.nn.Module) -> Tensor:
        """Return the loss, shape ()."""
        found: Tensor = net(self.data.functions, self.data.points)
        return (found - self.data.values).square().mean() / self.scale
