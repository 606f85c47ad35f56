"""Rates recovered from times that were made with known ones, and counts against hand-made sums."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mldd.graph import CostModel, Machine, Work, fit, graph_work
from mldd.graph.cost_model import COMPUTE, EXCHANGE, REDUCE

TRUE = CostModel(2e-4, 1e-10, 3e-10, 2e-9, 5e-6, 1e-10, 4e-6, 2e-10)


def _runs(seed: int = 0, count: int = 40) -> list[Work]:
    random = np.random.default_rng(seed)
    runs = []
    for _ in range(count):
        nodes, degree, hidden = random.integers(1e4, 1e6), random.integers(4, 20), int(random.integers(8, 256))
        layers, ranks = random.integers(1, 4), int(random.choice([2, 4, 16]))
        widths = (64, *[hidden] * layers, 8)
        halo, terms = 4 * nodes**0.5, int(random.integers(1, 3))
        more = {"halo": halo, "neighbours": int(random.integers(1, 9)), "ranks": ranks, "terms": terms}
        runs.append(graph_work(nodes, nodes * degree, widths, **more))
    return runs


def _times(works: list[Work], noise: float = 0.0) -> dict[str, list[float]]:
    random = np.random.default_rng(1)
    pieces = {"compute": COMPUTE, "exchange": EXCHANGE, "reduce": REDUCE}
    return {
        name: [TRUE.seconds(work, terms) * (1 + noise * random.standard_normal()) for work in works]
        for name, terms in pieces.items()
    }


def test_known_rates_are_recovered() -> None:
    works = _runs()
    found = fit(works, _times(works))
    for field in dataclasses.fields(TRUE):
        assert getattr(found, field.name) == pytest.approx(getattr(TRUE, field.name), rel=1e-6), field.name


def test_noise_of_five_percent_leaves_predictions_within_five_percent() -> None:
    works, unseen = _runs(), _runs(seed=7, count=10)
    found = fit(works, _times(works, noise=0.05))
    for work in unseen:
        assert found.step([work]).seconds == pytest.approx(TRUE.step([work]).seconds, rel=0.05)


def test_rates_are_never_negative() -> None:
    works = [Work(dense=1.0, sparse=1.0), Work(dense=2.0, sparse=1.0), Work(dense=1.0, sparse=2.0)]
    found = fit(works, {"compute": [2.0, 4.0, 1.0]})  # least squares without bounds has a negative rate
    assert found.sparse == 0 and found.dense > 0


def test_runs_on_one_rank_do_not_disturb_the_exchange() -> None:
    works = [Work(dense=1.0), Work(dense=1.0, messages=2, halo_bytes=10), Work(dense=1.0, messages=2, halo_bytes=30)]
    found = fit(works, {"exchange": [0.0, 3.0, 5.0]})
    assert (found.messages, found.halo_bytes) == (pytest.approx(1.0), pytest.approx(0.1))


def test_work_of_two_layers_by_hand() -> None:
    work = graph_work(100, 900, (7, 16, 3), halo=11, neighbours=2, ranks=4, itemsize=8)
    assert work.dense == 100 * (2 * 7 * 16 + 3 * 16 * 3)
    assert work.sparse == 900 * 2 * 3
    assert work.touched == 100 * (16 + 3)
    assert (work.messages, work.halo_bytes) == (2 * 2, 2 * 11 * 3 * 8)
    assert (work.rounds, work.reduced_bytes) == (4, 1.5 * 8 * (8 * 16 + 17 * 3))


def test_one_rank_sends_nothing_and_sage_has_two_products() -> None:
    one, two = (graph_work(100, 900, (8, 8, 8), terms=terms) for terms in (1, 2))
    assert (one.messages, one.halo_bytes, one.rounds, one.reduced_bytes) == (0, 0, 0, 0)
    assert two.dense == 2 * one.dense and two.sparse == one.sparse


def test_step_waits_for_the_slowest_rank() -> None:
    works = [graph_work(n, 10 * n, (64, 64, 8), halo=500, neighbours=1, ranks=2) for n in (10_000, 30_000)]
    step = TRUE.step(works)
    for k in range(2):
        assert step.compute[k] + step.exchange[k] + step.wait[k] + step.reduce == pytest.approx(step.seconds)
    assert step.wait[1] == 0 and step.wait[0] > 0


def test_machine_rates_are_its_figures() -> None:
    rates = Machine(flops=1e12, bandwidth=1e11, network=1e9, latency=1e-6, launch=1e-5, efficiency=0.5).rates(8)
    assert rates.seconds(Work(dense=1e12), COMPUTE) == pytest.approx(4.0)
    assert rates.seconds(Work(sparse=1e10), COMPUTE) == pytest.approx(8e10 / 5e10)
    assert rates.seconds(Work(messages=3, halo_bytes=1e9), EXCHANGE) == pytest.approx(3e-6 + 1 + 4e9 / 5e10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit([Work(dense=1)], {"compute": [1.0, 2.0]}), "times of `compute` must be 1 numbers >= 0"),
        (lambda: fit([Work(dense=1)], {"compute": [-1.0]}), "times of `compute` must be 1 numbers >= 0"),
        (lambda: fit([Work(dense=1)], {"compute": [0.0]}), "must not all be zero"),
        (lambda: fit([Work(dense=1)], {"idle": [1.0]}), "pieces of a step are compute, exchange and reduce"),
        (lambda: CostModel(dense=-1.0), "rate `dense` must be finite and >= 0, got -1.0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
