"""1, 4, 16, 64 subdomains in one batch on a device against one, and graphs of launches where launches rule the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from experiments.gpu.device import Device, Row, apart, attempts
from mldd.algebra import value_and_gradient
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.problems.images import Digits
from mldd.problems.pinns import PhysicsInformed
from mldd.problems.pinns.pinn_options import Windows

PARTS = (1, 4, 16, 64)


def of_graph(parts: int, nodes: int, device: Device) -> Row:
    """Time the gradients of all parts, each with parameters of its own and an exact halo, beside the whole graph."""
    data = sbm(nodes=nodes)
    last = torch.arange(nodes) >= nodes - 2
    test = last & (torch.arange(nodes) % 2 == 0)
    data = replace(data, train=~last, validation=last & ~test, test=test)
    problem = NodeClassification(
        data, network=Network(dropout=0.0), spaces=Spaces(local="own"), dtype="float32", device=device.name
    )
    whole, x, part = problem.objective(), problem.initial(0), torch.arange(nodes) * parts // nodes
    batch, rows = problem.local_batch(part, range(parts)), x.expand(parts, -1).clone()
    single = [problem.local_batch(part, [k]) for k in range(parts)]
    times = device.in_turn(
        {
            "whole": lambda: value_and_gradient(whole, x),
            "batch": lambda: batch.value_and_gradient(rows),
            "loop": lambda: [f.value_and_gradient(rows[k : k + 1]) for k, f in enumerate(single)],
        }
    )
    pieces = [problem.source.piece((part == k).nonzero().flatten().numpy(), 2) for k in range(parts)]
    read = sum(piece.rows[1 if piece.propagated else 0] for piece in pieces) / nodes
    return _ms(times) | {"halo": read, "batch over halo x whole": times["batch"] / (read * times["whole"])}


def of_windows(parts: int, device: Device) -> Row:
    """Time the gradient of a PINN with so many windows, at as many points in each."""
    points = (50 if device.quick else 200) * parts
    problem = PhysicsInformed("poisson1d", "windows", points=points, windows=Windows(parts), dtype="float32")
    here = replace(problem, device=device.name)
    f, x = here.objective(), here.initial(0)
    seconds = device.seconds(lambda: value_and_gradient(f, x))
    return {"points": points, "ms": 1e3 * seconds}


def _ms(times: dict[str, float]) -> Row:
    return {f"{name} ms": 1e3 * seconds for name, seconds in times.items()}


def subdomains(device: Device) -> list[Row]:
    """Time batches of subdomains."""
    nodes = 1_000 if device.quick else 200_000
    cases: dict[str, Callable[[], Row]] = {}
    for parts in PARTS[:2] if device.quick else PARTS:
        cases[f"graph, {parts} parts"] = lambda parts=parts: of_graph(parts, nodes, device)  # type: ignore[misc]
        windows = max(parts, 2)
        cases[f"windows, {windows}"] = lambda windows=windows: of_windows(windows, device)  # type: ignore[misc]
    return attempts(cases, device)


# ------------------------------------------------------------------------------------------------ launches


def recorded(call: Callable[[], Any], device: Device) -> Callable[[], Any]:
    """Return what repeats a call without launching its kernels one by one: a CUDA graph, the call itself on a CPU."""
    if not device.is_cuda:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def small_problems(device: Device) -> dict[str, Any]:
    """Return problems whose kernels are shorter than their launches."""
    of = {"dtype": "float32", "device": device.name}
    graph = NodeClassification(sbm(nodes=400), network=Network(dropout=0.0), labels="all", **of)  # type: ignore[arg-type]
    pinn = PhysicsInformed("poisson1d", **of)  # type: ignore[arg-type]
    return {"digits": Digits(**of), "gcn, 400 nodes": graph, "pinn": pinn}  # type: ignore[arg-type]


def launch(problem: Any, device: Device) -> Row:
    """Time value and gradient as they are, and recorded."""
    f, x = problem.objective(), problem.initial(0)
    plain = lambda: value_and_gradient(f, x)  # noqa: E731
    again = recorded(plain, device)
    difference = apart(plain()[1], again()[1])
    times = device.in_turn({"one by one": plain, "recorded": again})
    return _ms(times) | {"gain": times["one by one"] / times["recorded"], "difference": difference}


def launches(device: Device) -> list[Row]:
    """Time small problems."""
    cases = {name: (lambda p=p: launch(p, device)) for name, p in small_problems(device).items()}
    return attempts(cases, device)
