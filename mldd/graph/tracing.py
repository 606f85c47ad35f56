"""The layer graph of a torch network: operations, what flows between them, and stages of a pipeline made of them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mldd.graph.dag import LayerDag


def trace(module: torch.nn.Module, *inputs: Tensor, repeats: int = 5) -> tuple[fx.GraphModule, LayerDag]:
    """Return a trace of a network by `torch.fx`, and its operations measured on the inputs given.

    Times are medians of seconds of process CPU time (wall time on other devices) of the forward operation, sizes are
    bytes of its value, memories these and the bytes of the parameters of a module that is called.

    Parameters
    ----------
    module : Module
        That `torch.fx.symbolic_trace` can follow (no control flow that depends on values).
    repeats : int
        Evaluations of every operation.
    inputs : Tensor
        What the network is called with.

    Returns
    -------
    GraphModule
        The trace; its nodes in order are those of the graph.
    LayerDag
    """
    traced = fx.symbolic_trace(module)
    meter = _Meter(traced, repeats)
    buffers = {
        name: buffer.clone() for name, buffer in module.named_buffers()
    }  # running means are none of our business
    with torch.no_grad():
        meter.run(*inputs)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    nodes = list(traced.graph.nodes)
    sizes = torch.tensor([meter.sizes[node.name] for node in nodes], dtype=torch.float64)
    kept = [_parameter_bytes(traced, node) for node in nodes]
    times = torch.tensor([meter.times[node.name] for node in nodes], dtype=torch.float64)
    return traced, LayerDag(_edges(traced), times, sizes + torch.tensor(kept, dtype=torch.float64), sizes)


class _Meter(fx.Interpreter):
    """Run a trace, timing every operation and weighing its value."""

    def __init__(self, module: fx.GraphModule, repeats: int) -> None:
        super().__init__(module)
        self.repeats = repeats
        self.times: dict[str, float] = {}
        self.sizes: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.times[n.name], self.sizes[n.name] = 0.0, float(_bytes(value))
        if n.op in ("call_module", "call_function", "call_method"):
            self.times[n.name] = float(np.median([self._seconds(n, value) for _ in range(self.repeats)]))
        return value

    def _seconds(self, node: fx.Node, value: Any) -> float:
        on_gpu = isinstance(value, Tensor) and value.is_cuda
        clock = time.perf_counter if on_gpu else time.process_time
        start = clock()
        super().run_node(node)
        if on_gpu:
            torch.cuda.synchronize(value.device)
        return clock() - start


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def _parameter_bytes(traced: fx.GraphModule, node: fx.Node) -> int:
    if node.op != "call_module":
        return 0
    return sum(_bytes(p) for p in traced.get_submodule(str(node.target)).parameters())


def _edges(traced: fx.GraphModule) -> Tensor:
    number = {node: i for i, node in enumerate(traced.graph.nodes)}
    pairs = [(number[source], number[node]) for node in number for source in node.all_input_nodes]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
