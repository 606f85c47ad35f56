"""Boxes: projection, shift, criticality, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mldd.algebra import Bounds


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BOX = Bounds(vector(0.0, -torch.inf, 1.0), vector(1.0, 2.0, 1.0))
numbers = st.floats(-1e3, 1e3)


def test_project_is_the_nearest_point_and_is_idempotent() -> None:
    x = BOX.project(vector(-3.0, -3.0, -3.0))
    assert x.tolist() == [0.0, -3.0, 1.0]
    assert torch.equal(BOX.project(x), x)
    out = torch.empty(3, dtype=torch.float64)
    assert BOX.project(vector(5.0, 5.0, 5.0), out=out) is out
    assert out.tolist() == [1.0, 2.0, 1.0]


def test_free_bounds_change_nothing_and_return_new_tensors() -> None:
    free, x, g = Bounds.free(2), vector(1.0, -2.0), vector(3.0, -4.0)
    projected = free.project(x)
    assert torch.equal(projected, x) and projected.data_ptr() != x.data_ptr()
    assert free.shifted(x) is free
    assert torch.equal(free.criticality(x, g), -g)
    assert free.measure(x, g) == 4.0 and free.measure(x, g, 2) == 5.0
    assert free.violation(x) == 0.0
    assert Bounds.free(2, 3).lower.shape == Bounds.free(2, 3).upper.shape == (2, 3)
    assert Bounds.free(10**6).lower.untyped_storage().nbytes() == 8, "must take no memory"


def test_measure_is_that_of_the_projected_step() -> None:
    x, g = vector(0.0, 0.0, 1.0), vector(5.0, 1.0, 7.0)
    assert BOX.criticality(x, g).tolist() == [0.0, -1.0, 0.0]
    assert BOX.measure(x, g) == 1.0
    assert BOX.measure(x, -g) == 1.0, "the first component may move by 1, the second by 1"
    assert BOX.measure(x, -g, 2) == pytest.approx(2**0.5)


def test_violation_is_the_largest_one() -> None:
    assert BOX.violation(vector(-0.25, 2.5, 1.0)) == 0.5
    assert BOX.violation(vector(0.5, 0.0, 1.0)) == 0.0


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=8))
def test_a_shifted_box_holds_the_corrections_that_stay_inside(rows: list[tuple[float, float, float]]) -> None:
    low, high, x = (vector(*column) for column in zip(*rows, strict=True))
    box = Bounds(torch.minimum(low, high), torch.maximum(low, high))
    x = box.project(x)
    shifted = box.shifted(x)
    assert bool((shifted.lower <= 0).all()) and bool((shifted.upper >= 0).all())
    assert box.violation(x + shifted.project(torch.full_like(x, 1e6))) <= 1e-9
    assert box.violation(x + shifted.project(torch.full_like(x, -1e6))) <= 1e-9


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (vector(0.0, 2.0), vector(1.0, 1.0), "2.0 > 1.0 at component 1 .1 in all.; swap or widen"),
        (vector(0.0, torch.nan), vector(1.0, 1.0), "lower <= upper"),
        (vector(0.0), vector(1.0, 1.0), r"`lower` must have the shape of x, \(2,\), got \(1,\)"),
        (vector(0.0, 0.0), vector(1.0, 1.0, 1.0), r"`upper` must have the shape of x, \(2,\), got \(3,\)"),
    ],
)
def test_bad_bounds_are_refused(lower: Tensor, upper: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bounds(lower, upper).check(vector(0.0, 0.0))


def test_good_bounds_pass() -> None:
    BOX.check(vector(0.0, 0.0, 0.0))
    Bounds.free(3).check(vector(0.0, 0.0, 0.0))


def test_bounds_live_on_the_device_and_have_the_dtype_asked_for() -> None:
    free = Bounds.free(4, dtype=torch.float32, device="meta")
    assert free.lower.dtype == torch.float32 and free.upper.device.type == "meta"
    x = torch.empty(4, dtype=torch.float32, device="meta")
    box = Bounds(x, x).shifted(x)
    assert box.project(x).device.type == "meta" and box.criticality(x, x).dtype == torch.float32


def test_bounds_at_infinity_are_none():
    infinity = torch.full((3,), torch.inf)
    assert Bounds(-infinity, infinity).is_free
    assert not Bounds(-infinity, torch.tensor([torch.inf, 1.0, torch.inf])).is_free
    assert not Bounds(infinity, infinity).is_free
    from mldd.algebra import ModuleObjective
    from mldd.loop import Stop, minimise
    from mldd.solvers import LBFGS

    f = ModuleObjective(
        torch.nn.Linear(2, 1), lambda m: (m(torch.ones(1, 2)) - 1).square().sum(), Bounds(-infinity, infinity)
    )
    assert float(minimise(f, f.initial(), LBFGS(), stop=Stop(10), values=True).record.value) < 1e-6
