"""A device computes what the CPU computes, to rounding: every kind of layer and of problem, every family of solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from experiments.gpu.device import Device, Row, apart, attempts
from mldd import Stop
from mldd.algebra import value_and_gradient
from mldd.loop import minimise
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.problems.grids import Bratu, MinimalSurface, Obstacle
from mldd.problems.images import Digits
from mldd.problems.nets.layers import layer_kinds, layer_of
from mldd.problems.pinns import PhysicsInformed
from mldd.solvers import (
    LBFGS,
    AdaGrad,
    Adam,
    Apts,
    Aspin,
    DiLoCo,
    LocalAdam,
    LocalSgd,
    Mofftr,
    MultilevelAdaGrad,
    MultilevelLBFGS,
    NewtonCG,
    NonlinearSchwarz,
    Raspen,
    SchwarzAdaGrad,
    SchwarzLBFGS,
    Sgd,
    TrustRegion,
    Whitened,
)

GRADIENTS = {"float64": 1e-10, "float32": 1e-3}  # bounds on the relative difference of gradients
STEPS, ITERATES = 3, 1e-6  # steps of a solver, and the bound on the difference of its iterates in float64
PARTS = 4


def graph(nodes: int, **options: Any) -> NodeClassification:
    """Return a node classification that needs no partitioner and no download."""
    network = Network(**({"dropout": 0.0} | options))
    return NodeClassification(sbm(nodes=nodes), network=network, spaces=Spaces(clustering="matching"), labels="all")


def part(problem: NodeClassification) -> torch.Tensor:
    """Return parts of consecutive nodes."""
    nodes = problem.graph.nodes
    return torch.arange(nodes) * PARTS // nodes


def problems(nodes: int) -> dict[str, Any]:
    """Return the problems whose gradients are compared; graphs have so many nodes."""
    found: dict[str, Any] = {}
    for kind in layer_kinds():
        heads = 2 if layer_of(kind).many_heads else 1
        found[f"layers of {kind}"] = graph(nodes, model=kind, heads=heads)
    found |= {"gcn, 4 layers that add": graph(nodes, layers=4, residual=True), "dropout": graph(nodes, dropout=0.5)}
    found |= {"digits": Digits(), "digits, relu": Digits(activation="relu")}
    found |= {"pinn": PhysicsInformed("poisson1d"), "pinn, residual": PhysicsInformed("burgers", points=200)}
    found |= {"pinn, windows": PhysicsInformed("poisson1d", "windows", points=100)}
    return found | {"obstacle": Obstacle(31), "minimal surface": MinimalSurface(31)}


def gradients(problem: Any, dtype: str, device: Device) -> Row:
    """Compare value and gradient of the loss."""
    here = replace(problem, dtype=dtype)
    there = replace(here, device=device.name)
    x = here.initial(0)
    f, g = here.objective(0) if _draws(here) else here.objective(), None
    value, g = value_and_gradient(f, x)
    f_there = there.objective(0) if _draws(there) else there.objective()
    value_there, g_there = value_and_gradient(f_there, x.to(device.name))
    difference = max(apart(g, g_there), apart(value, value_there))
    return {"dtype": dtype, "difference": difference, "agrees": difference <= GRADIENTS[dtype]}


def _draws(problem: Any) -> bool:
    """Say whether the loss is another one in every step."""
    return getattr(getattr(problem, "network", None), "dropout", 0.0) > 0.0


def families(problem: Any) -> dict[str, Callable[[], Any]]:
    """Return solvers on a node classification."""
    parts, levels = problem.decomposition(part(problem)), problem.hierarchy(2)
    first = AdaGrad(1e-3, 0.03, curvature="none")
    return {
        "adam": lambda: Adam(0.01),
        "lbfgs": LBFGS,
        "lbfgs, white": lambda: Whitened(problem.first_layer()),
        "adagrad": lambda: first,
        "adagrad, curvature": AdaGrad,
        "trust region": TrustRegion,
        "trust region, sr1": lambda: TrustRegion("sr1"),
        "newton": NewtonCG,
        "ml-adagrad": lambda: MultilevelAdaGrad(levels, first),
        "mofftr": lambda: Mofftr(levels, first),
        "ml-lbfgs": lambda: MultilevelLBFGS(levels),
        "schwarz": lambda: NonlinearSchwarz(parts, local_steps=3, damping=0.5),
        "dd-adagrad": lambda: SchwarzAdaGrad(parts, local=first, local_steps=3, global_steps=1),
        "dd-adagrad, 2 levels": lambda: SchwarzAdaGrad(parts, levels, local=first, local_steps=3, global_steps=1),
        "aspqn": lambda: SchwarzLBFGS(parts, local_steps=3),
        "mspqn": lambda: SchwarzLBFGS(parts, order="multiplicative", local_steps=3),
        "apts": lambda: Apts(parts),
        "localsgd": lambda: LocalSgd(parts, Sgd(0.1), local_steps=3),
        "local adam": lambda: LocalAdam(parts, local_steps=3),
        "diloco": lambda: DiLoCo(parts),
    }


def grid_families(problem: Any) -> dict[str, Callable[[], Any]]:
    """Return solvers on a grid, with bounds or without."""
    parts = problem.decomposition(PARTS, 2)
    if problem.objective().bounds.is_free:
        return {"raspen": lambda: Raspen(parts), "aspin": lambda: Aspin(parts)}
    return {
        "ml-adagrad, bounds": lambda: MultilevelAdaGrad(problem.hierarchy(3)),
        "dd-adagrad, bounds": lambda: SchwarzAdaGrad(parts, problem.coarse_hierarchy(2, PARTS)),
    }


def iterates(problem: Any, of: Callable[[Any], dict[str, Callable[[], Any]]], name: str, device: Device) -> Row:
    """Compare what a solver makes of the same start in a few steps."""
    ends = []
    for where in ("cpu", device.name):
        here = replace(problem, device=where)
        stop = Stop(STEPS)
        ends.append(minimise(here.objective(), here.initial(0), of(here)[name](), stop=stop, values=False).x)
    difference = apart(*ends)
    return {"steps": STEPS, "difference": difference, "agrees": difference <= ITERATES}


def layers(device: Device) -> list[Row]:
    """Compare gradients of all problems."""
    cases: dict[str, Callable[[], Row]] = {}
    for name, problem in problems(200 if device.quick else 4000).items():
        for dtype in ("float64",) if device.quick else GRADIENTS:
            cases[f"{name}, {dtype}"] = lambda problem=problem, dtype=dtype: gradients(problem, dtype, device)  # type: ignore[misc]
    return attempts(cases, device)


def solvers(device: Device) -> list[Row]:
    """Compare iterates of all families."""
    nodes, free = 200 if device.quick else 4000, Bratu(15, upper=math.inf)
    cases: dict[str, Callable[[], Row]] = {}
    for problem, of in ((graph(nodes), families), (Obstacle(15), grid_families), (free, grid_families)):
        for name in of(problem):
            cases[name] = lambda p=problem, o=of, n=name: iterates(p, o, n, device)  # type: ignore[misc]
    return attempts(cases, device)
