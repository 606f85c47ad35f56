"""Sums over parts: whatever ranks hold them, all add in the order of one tree."""

import math

import pytest
import torch

from mldd.ranks import SERIAL, part_sum
from mldd.ranks.part_sums import _added, _size, blocks_of


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 13])
def test_digits_do_not_depend_on_how_parts_are_shared(parts):
    rows = torch.randn(parts, 40, generator=torch.Generator().manual_seed(parts), dtype=torch.float32)
    rows *= 10.0 ** torch.arange(40).sub(20)
    expected = part_sum(rows.clone(), parts, SERIAL)
    exact = torch.tensor([math.fsum(column) for column in rows.T.double().tolist()], dtype=torch.float64)
    largest = rows.double().abs().sum(0)
    assert float(((expected.double() - exact).abs() / largest).max()) < 1e-6
    for ranks in range(1, parts + 1):
        held, arrived = [k * parts // ranks for k in range(ranks + 1)], {}
        for begin, end in zip(held, held[1:], strict=False):
            own = {(k, k + 1): rows[k] for k in range(begin, end)}
            blocks = blocks_of(range(begin, end), parts)
            assert [k for a, b in blocks for k in range(a, b)] == list(range(begin, end))
            arrived |= {(a, b): _added(own, a, _size(b - a), parts) for a, b in blocks}
        assert torch.equal(_added(arrived, 0, _size(parts), parts), expected)


def test_a_rank_with_a_power_of_two_of_parts_sends_one_vector():
    assert [len(blocks_of(range(4 * k, 4 * k + 4), 16)) for k in range(4)] == [1] * 4
