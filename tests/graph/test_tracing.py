"""Traces of networks: sizes, memories, and stages that compute what the network computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mldd.graph.tracing import trace


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.second(torch.relu(self.first(x))))


def _network() -> nn.Module:
    return nn.Sequential(*(_Residual(16) for _ in range(4)), nn.Linear(16, 3))


def test_trace_measures_sizes_memories_and_times() -> None:
    network, x = _network(), torch.randn(10, 16)
    before = [buffer.clone() for buffer in network.buffers()]
    traced, dag = trace(network, x, repeats=2)
    nodes = list(traced.graph.nodes)
    assert dag.nodes == len(nodes) and dag.sizes is not None and dag.memories is not None
    linear = next(i for i, node in enumerate(nodes) if node.op == "call_module")
    assert float(dag.sizes[linear]) == 10 * 16 * 4
    assert float(dag.memories[linear]) == 10 * 16 * 4 + (16 * 16 + 16) * 4
    assert float(dag.times.min()) >= 0 and float(dag.times[0]) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
    add = next(i for i, node in enumerate(nodes) if len(node.all_input_nodes) == 2)
    assert dag.edges[0, dag.edges[1] == add].tolist() == sorted(
        i for i, node in enumerate(nodes) if node in nodes[add].all_input_nodes
    )
