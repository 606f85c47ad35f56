"""Rounding at random is right in the mean; on one rank, and with the options off, inexact halos are the exact one."""

import pytest
import scipy.sparse as sp
import torch

from mldd.algebra import sampled
from mldd.graph import partition
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs.inexact_halo import HistoricalHalo, QuantisedHalo, SampledHalo, StaleHalo, coded, decoded
from mldd.problems.nets import HaloOperator
from mldd.ranks import Halo, timed
from tests.small_graphs import sharded


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_right_in_the_mean(bits):
    rows = torch.randn(6, 5, generator=generator())
    draws = 1000
    random = generator(1)
    samples = torch.stack([decoded(coded(rows, bits, random)) for _ in range(draws)])
    spacing = (rows.amax(1) - rows.amin(1))[:, None] / 255 if bits == 8 else rows.abs() * 2.0**-7
    assert bool(((samples - rows).abs() <= spacing * 1.001).all())
    # six standard deviations of a mean of numbers that differ by one spacing
    assert bool(((samples.mean(0) - rows).abs() <= 6 * 0.5 * spacing / draws**0.5 + 1e-7).all())
    assert len(samples[:, 0, 0].unique()) == 2 or bits == 8


def test_what_needs_no_rounding_is_kept():
    random = generator()
    constant = torch.full((3, 4), 0.3)
    assert torch.equal(decoded(coded(constant, 8, random)), constant)
    levels = torch.arange(256.0)[None] * 0.5 - 7
    assert torch.equal(decoded(coded(levels, 8, random)), levels)
    short = torch.randn(3, 4, generator=random).to(torch.bfloat16).float()
    assert torch.equal(decoded(coded(short, 16, random)), short)
    for bits in (8, 16):
        assert decoded(coded(torch.empty(0, 4), bits, random)).shape == (0, 4)


def test_bytes_of_a_row():
    rows = torch.randn(3, 4)
    assert coded(rows, 8, generator()).shape == (3, 4 + 8) and coded(rows, 8, generator()).dtype == torch.uint8
    assert coded(rows, 16, generator()).dtype == torch.bfloat16


def test_another_exchange_keeps_the_operator():
    """Every step has exchanges of its own: what attention needs of the operator is made once."""
    halo = Halo.none(3)
    operator = HaloOperator.of(sp.identity(3, format="csr"), halo)
    one, two = (operator.through(StaleHalo(halo, 1).at(step)) for step in (0, 1))
    assert one.exchange is not two.exchange
    assert one.pattern is two.pattern is operator.pattern and one.pattern.shape == (3, 3)


def test_waiting_for_stale_rows_is_measured():
    stale = StaleHalo(Halo.none(3), 1)
    with timed() as time:
        for step in range(3):
            stale.at(step).exchange(torch.ones(3, 2))
    assert time.exchanges == 2, "nobody has waited for the last one"


def test_with_the_options_off_it_is_the_halo_itself():
    halo = Halo.none(3)
    assert StaleHalo(halo, 0).at(3) is halo and SampledHalo(halo, 1.0).at(3) is halo


@pytest.mark.parametrize("options", [{"halo": h} for h in ("stale", "history", "sampled", "int8", "bfloat16")], ids=str)
@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_one_rank_is_exact(options, model):
    data = sbm(nodes=60, classes=3, features=4)
    part = partition(data.graph, 3)
    given = {"model": model, "layers": 3, "hidden": 4, "dropout": 0.2}
    one, exact = (sharded(data, part, **given, **more) for more in (options, {}))
    x = one.initial(0)
    for step in range(2):
        f, g = sampled(one.objective(), step), sampled(exact.objective(), step)
        assert torch.allclose(f.gradient(x), g.gradient(x), rtol=1e-12)
        assert torch.allclose(f.hessian_product(x, x), g.hessian_product(x, x), rtol=1e-12)
    assert torch.allclose(one.objective().value(x), exact.objective().value(x), rtol=1e-14)
    assert "inexact" in one.details()["halo"] and exact.details()["halo"] == "exact"


def test_random_numbers_depend_on_the_step_and_the_layer():
    halo = Halo.none(3)
    rows = torch.rand(50, 3)
    codes = [
        QuantisedHalo(halo, 8, seed, layer).at(step)._coded(rows, way)
        for seed, layer, step, way in (
            (0, 0, 0, 0),
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 0, 1),
        )
    ]
    assert [torch.equal(codes[0], code) for code in codes] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halo": "none"}, "`halo` must be one of exact, stale"),
        ({"lag": -1}, "`lag` must be >= 0"),
        ({"halo": "history", "lag": 0}, ">= 1 for a history, got 0"),
        ({"smoothing": 1.0}, r"`smoothing` must be in \[0, 1\), got 1.0"),
        ({"keep": 0.0}, r"`keep` must be in \(0, 1\], got 0.0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    data = sbm(nodes=60, classes=3, features=4)
    with pytest.raises(ValueError, match=message):
        sharded(data, torch.arange(60) % 2, **options)


def test_a_history_on_one_rank_keeps_rows():
    halo = HistoricalHalo(Halo.none(3), 2)
    into = torch.ones(3, 2)
    exchange = halo.at(1)
    assert exchange.end(exchange.begin(torch.ones(3, 2))).shape == (0, 2)
    assert exchange.end_back(exchange.begin_back(torch.ones(0, 2)), into) is into
