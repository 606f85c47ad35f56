"""Advice follows from the time of a gradient and that of a sum: the numbers are those of the formulas."""

import math

import pytest

from mldd.advice import Advice, advise
from mldd.problems.grids import Obstacle
from mldd.ranks import Interconnect

FAR = Interconnect.of("latency=10ms,bandwidth=1Gb/s")


def of(gradient, interconnect=FAR, stochastic=True, ranks=4):
    return Advice(10**6, 4, gradient, ranks, interconnect, stochastic)


def test_shares_of_the_time_are_those_of_the_formula():
    made = of(gradient=0.8)
    one = 4 * 0.01 + 1.5 * 4e6 / 1.25e8  # 2 log2(4) latencies, 2 (P - 1) / P of the bytes
    three = 4 * 0.01 + 1.5 * 12e6 / 1.25e8
    assert made.sum_seconds() == pytest.approx(one) and made.price == pytest.approx(one / 0.2)
    assert made.communication(1) == pytest.approx(one / (0.2 + one))
    assert made.communication(20) == pytest.approx(three / 20 / (0.2 + three / 20))


def test_the_fewest_local_steps_that_hide_communication_are_named():
    made = of(gradient=0.8)
    assert made.local_steps == 10 and "--local-steps 10" in made.says
    assert made.communication(10) <= 0.1 < made.communication(5)
    assert of(gradient=1e-6).local_steps is None
    assert "metric=inputs" in of(0.8, stochastic=False).says and "local-adam" not in of(0.8, stochastic=False).says
    assert of(gradient=100.0).says.startswith("work decides") and of(gradient=100.0).local_steps == 1


def test_a_gradient_is_measured_and_lines_are_said():
    made = advise(Obstacle(n=7), 2, FAR, seconds=0.05)
    assert made.unknowns == 49 and made.itemsize == 8 and 0 < made.gradient < 1 and not made.stochastic
    assert math.isclose(made.share, made.gradient / 2)
    lines = list(made.lines())
    assert "49 numbers" in lines[1] and lines[-1].startswith("advice") and all(len(line) < 300 for line in lines)
    with pytest.raises(ValueError, match="`ranks` >= 2"):
        advise(Obstacle(n=7), 1, FAR)


def test_the_command_says_it(run):
    code, out, err = run("advise obstacle:n=7 --ranks 4 --network sites --seconds 0.05")
    assert (code, err) == (0, "") and "synchronisations decide" in out
    code, _, err = run("advise obstacle --ranks 1")
    assert code == 2 and ">= 2" in err
