"""Stages of a pipeline against every possible cut, on chains and on general graphs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mldd.graph.dag import LayerDag, _gains, describe, partition_layers


def _random(seed: int, nodes: int, chain: bool) -> LayerDag:
    random = np.random.default_rng(seed)
    if chain:
        ends = np.stack([np.arange(nodes - 1), np.arange(1, nodes)])
    else:
        ends = np.stack(np.nonzero(np.triu(random.random((nodes, nodes)) < 0.4, 1)))
    names = random.permutation(nodes)  # the numbering need not be an order
    sizes = torch.from_numpy(random.integers(1, 10, nodes)).double()
    return LayerDag(torch.from_numpy(names[ends]), *torch.from_numpy(random.random((2, nodes))), sizes)


def _sent(dag: LayerDag, label: tuple[int, ...]) -> float:
    """Add up the sizes node by node: once for every foreign part that reads the value."""
    readers: dict[int, set[int]] = {}
    for u, v in dag.edges.T.tolist():
        readers.setdefault(u, set()).add(label[v])
    assert dag.sizes is not None
    return sum(float(dag.sizes[u]) * len(parts - {label[u]}) for u, parts in readers.items())


def _best(dag: LayerDag, parts: int, capacity: float, imbalance: float) -> tuple[float, float] | None:
    """Try all part lists; return the least largest time, and the least communication near it."""
    found = []
    assert dag.memories is not None
    for label in itertools.product(range(parts), repeat=dag.nodes):
        if len(set(label)) < parts or any(label[u] > label[v] for u, v in dag.edges.T.tolist()):
            continue
        times = np.bincount(label, dag.times.numpy())
        if np.bincount(label, dag.memories.numpy()).max() <= capacity:
            found.append((float(times.max()), label))
    if not found:
        return None
    least = min(found)[0]
    return least, min(_sent(dag, label) for time, label in found if time <= (1 + imbalance) * least * (1 + 1e-12))


@pytest.mark.parametrize("seed", range(8))
def test_chain_is_optimal(seed: int) -> None:
    dag = _random(seed, nodes=8, chain=True)
    assert dag.memories is not None
    capacity = max(float(dag.memories.max()), 0.45 * float(dag.memories.sum()))
    best = _best(dag, 3, capacity, 0.1)
    if best is None:
        with pytest.raises(ValueError, match="no cut into 3 parts was found"):
            partition_layers(dag, 3, capacity=capacity, imbalance=0.1)
        return
    report = describe(dag, partition_layers(dag, 3, capacity=capacity, imbalance=0.1))
    assert max(report["times"]) <= 1.1 * best[0] * (1 + 1e-12)
    assert report["communication"] == pytest.approx(best[1])
    assert max(report["memories"]) <= capacity * (1 + 1e-12)


def test_without_imbalance_the_largest_time_of_a_chain_is_least() -> None:
    dag = _random(3, nodes=9, chain=True)
    report = describe(dag, partition_layers(dag, 4, imbalance=0.0))
    assert max(report["times"]) == pytest.approx(_best(dag, 4, np.inf, 0.0)[0])  # type: ignore[index]


def test_general_graphs_are_acyclic_and_near_the_best() -> None:
    ratios = []
    for seed in range(10):
        dag = _random(seed, nodes=7, chain=False)
        best = _best(dag, 3, np.inf, 0.1)
        assert best is not None
        part = partition_layers(dag, 3, imbalance=0.1)
        report = describe(dag, part)
        assert report["acyclic"] and report["parts"] == 3 and min(report["nodes"]) > 0
        assert report["communication"] == pytest.approx(_sent(dag, tuple(part.tolist())))
        ratios.append((max(report["times"]) / (1.1 * best[0]), (1 + report["communication"]) / (1 + best[1])))
    assert np.mean(ratios, axis=0).max() < 1.1


def test_gains_are_differences_of_the_communication() -> None:
    dag = _random(5, nodes=9, chain=False)
    label = np.random.default_rng(0).integers(0, 3, dag.nodes)
    gains = _gains(dag, label, 3)
    for node, part in itertools.product(range(dag.nodes), range(3)):
        moved = label.copy()
        moved[node] = part
        assert gains[node, part] == pytest.approx(_sent(dag, tuple(label)) - _sent(dag, tuple(moved)))


def test_a_value_is_sent_once_to_a_part() -> None:
    dag = LayerDag(torch.tensor([[0, 0, 0], [1, 2, 3]]), torch.ones(4), sizes=torch.tensor([5.0, 1.0, 1.0, 1.0]))
    assert describe(dag, torch.tensor([0, 1, 1, 2]))["communication"] == 10
    assert not describe(dag, torch.tensor([1, 0, 2, 2]))["acyclic"]


def test_skip_connections_are_kept_in_one_part() -> None:
    # two blocks 0 -> 1 -> 2 with 0 -> 2, joined by a thin edge 2 -> 3: the cut belongs there
    edges = torch.tensor([[0, 1, 0, 2, 3, 4, 3], [1, 2, 2, 3, 4, 5, 5]])
    sizes = torch.tensor([8.0, 8.0, 1.0, 8.0, 8.0, 1.0])
    assert partition_layers(LayerDag(edges, torch.ones(6), sizes=sizes), 2).tolist() == [0, 0, 0, 1, 1, 1]


def test_large_graphs_are_cut_and_balanced() -> None:
    random = np.random.default_rng(0)
    ends = np.sort(random.integers(0, 250, (2, 600)), axis=0)
    dag = LayerDag(torch.from_numpy(ends[:, ends[0] < ends[1]]), torch.from_numpy(random.random(250)))
    report = describe(dag, partition_layers(dag, 8))
    assert report["acyclic"] and report["balance"] < 1.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LayerDag(torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.ones(3)), "`edges` must have no cycle, got "),
        (lambda: LayerDag(torch.tensor([[0], [0]]), torch.ones(3)), "`edges` must have no cycle"),
        (lambda: LayerDag(torch.tensor([[0], [3]]), torch.ones(3)), "`edges` must hold nodes 0..2, got 0..3"),
        (lambda: LayerDag(torch.tensor([0, 1]), torch.ones(2)), "`edges` must be int64 of shape (2, E)"),
        (lambda: LayerDag(torch.tensor([[0], [1]]), torch.tensor([1.0, -1.0])), "`times` must be finite, >= 0"),
        (lambda: LayerDag(torch.tensor([[0], [1]]), torch.ones(2), torch.ones(3)), "`memories` must be"),
        (lambda: LayerDag(torch.zeros(2, 0).long(), torch.ones(0)), "`times` must have shape (n,)"),
        (lambda: partition_layers(_random(0, 4, True), 5), "`parts` must be in 1..4 (the number of nodes), got 5"),
        (lambda: partition_layers(_random(0, 4, True), 2, imbalance=-1.0), "`imbalance` must be >= 0"),
        (lambda: partition_layers(_random(0, 4, True), 2, capacity=1e-3), "`capacity` must hold the largest node"),
        (lambda: partition_layers(_random(0, 4, True), 1, capacity=1.0), "no cut into 1 parts was found"),
        (lambda: describe(_random(0, 4, True), torch.zeros(3).long()), "`part` must be int64 >= 0 of shape (4,)"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
