"""Silent errors: which are found, how the run goes on, and that a clean run is never suspected."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mldd.algebra import Around, Noisy
from mldd.loop import FINITE, REPLICATED, RISING, Detection, Interval, Schedule, State, Status, Stop, minimise
from mldd.loop.guards.gradients import is_another, is_slope
from mldd.loop.guards.invariants import Leaf, checksum, fallen, leaves, sums_of_bits
from mldd.ranks import SERIAL
from mldd.solvers import LBFGS, AdaGrad, Adam, Sgd
from mldd.solvers.parts import LbfgsPairs
from tests.helpers import Rosenbrock, quadratic

ALWAYS = Detection(verify_every=1)  # checks at every step
CHECKS = Detection(verify_every=10**6)  # the same, but the gradient is evaluated again at the start alone
OFF = Detection(share=0.0)


@dataclass(frozen=True)
class Struck(Around):
    """`f`, calling `strike` with the point and the gradient of evaluations whose numbers are in `at`."""

    strike: Callable[[Tensor, Tensor], None]
    at: range = range(9, 10)
    calls: list[int] = field(default_factory=lambda: [0])

    def gradient(self, x: Tensor) -> Tensor:
        g = self.f.gradient(x)
        self.calls[0] += 1
        if self.calls[0] in self.at:
            self.strike(x, g)
        return g


def flip(tensor: Tensor, bit: int, place: int = 3) -> None:
    """Flip a bit of an entry, as memory does: no version of the tensor says so."""
    kind = torch.int64 if tensor.element_size() == 8 else torch.int32
    tensor.data.view(-1).view(kind)[place] ^= 1 << bit


def run(f: Any, solver: Any, detection: Detection, steps: int = 30, **options: Any) -> Any:
    start = torch.full((f.size,), 0.5, dtype=f.bounds.lower.dtype)
    return minimise(f, start, solver, stop=Stop(max_steps=steps), detection=detection, **options)


def same(result: Any, clean: Any) -> bool:
    """Whether two runs have the same iterate and the same history, bit by bit, apart from their costs."""
    columns = ("step", "measure", "accepted", "rejected")
    histories = (result.history, clean.history)
    return torch.equal(result.x, clean.x) and all(
        histories[0].column(name) == histories[1].column(name) for name in columns
    )


@pytest.mark.parametrize("bit", [0, 30, 51, 62, 63])
@pytest.mark.parametrize("solver", [AdaGrad(curvature="none"), Adam(), Sgd(lr=0.003, momentum=0.5)], ids=str)
def test_any_bit_of_an_iterate_at_rest_is_found_and_the_run_is_that_without_an_error(solver, bit):
    f = quadratic(20)
    clean = run(f, solver, OFF)
    with pytest.warns(UserWarning, match=r"step \d+: memory has changed between two steps.*; the run goes back to"):
        result = run(Struck(f, lambda x, g: flip(x, bit)), solver, CHECKS)
    assert same(result, clean) and result.rollbacks == 1 and result.status is clean.status
    assert sum(result.state.notes.values()) == 1


@dataclass(frozen=True)
class Kept:
    """A solver whose state a test can reach."""

    solver: Any
    states: list[Any] = field(default_factory=list)

    def init(self, objective: Any, x: Tensor) -> Any:
        return self.solver.init(objective, x)

    def step(self, objective: Any, x: Tensor, state: Any) -> Any:
        x, state = self.solver.step(objective, x, state)
        self.states[:] = [state]
        return x, state


@pytest.mark.parametrize(
    ("solver", "reach"),
    [
        (AdaGrad(curvature="none"), lambda s: s.squares),
        (Adam(), lambda s: s.mean),
        (LBFGS(), lambda s: s.pairs.steps),
        (AdaGrad(curvature="lbfgs"), lambda s: s.pairs.W),
    ],
)
def test_bits_of_a_state_at_rest_are_found(solver, reach):
    f, kept = Rosenbrock(), Kept(solver)
    clean = run(f, solver, OFF)

    def strike(x: Tensor, g: Tensor) -> None:
        flip(reach(kept.states[0]), 52)

    with pytest.warns(UserWarning, match="memory has changed|curvature pairs do not fit"):
        result = run(Struck(f, strike), kept, CHECKS)
    assert same(result, clean) and result.rollbacks == 1


def test_a_run_with_samples_goes_back_to_the_sample_of_the_step():
    f = Noisy(quadratic(20), 0.1, seed=4)
    clean = run(f, Adam(), OFF)

    @dataclass(frozen=True)
    class Sampled(Struck):
        def sample(self, step: int) -> Struck:
            return Struck(self.f.sample(step), self.strike, self.at, self.calls)

    with pytest.warns(UserWarning, match="memory has changed"):
        result = run(Sampled(f, lambda x, g: flip(x, 40)), Adam(), CHECKS)
    assert same(result, clean) and result.rollbacks == 1


@pytest.mark.parametrize("entry", [1e6, -1e-2, math.nan, math.inf])
def test_a_gradient_that_is_wrong_once_is_found_when_it_is_evaluated_again(entry):
    f = quadratic(20)
    clean = run(f, Sgd(lr=0.003), OFF)

    def strike(x: Tensor, g: Tensor) -> None:
        g[3] += entry

    with pytest.warns(UserWarning, match="the gradient is another one"):
        result = run(Struck(f, strike), Sgd(lr=0.003), ALWAYS)
    assert same(result, clean) and result.rollbacks == 1


@pytest.mark.parametrize("entry", [1e6, math.nan])
def test_a_gradient_that_jumps_is_evaluated_again_without_being_asked(entry):
    f, solver = quadratic(20), Sgd(lr=0.003)
    clean = run(f, solver, OFF)

    def strike(x: Tensor, g: Tensor) -> None:
        g[3] += entry

    with pytest.warns(UserWarning, match="the gradient is another one"):
        result = run(Struck(f, strike), solver, Detection(share=1e-9))
    assert same(result, clean) and result.rollbacks == 1


def test_steps_that_lead_to_a_jump_are_done_again():
    """An iterate that is hit inside of a step, where no bits are compared: only to do it again tells."""
    f, solver = quadratic(20), Kept(Sgd(lr=0.003))
    clean = run(f, solver, OFF)

    @dataclass(frozen=True)
    class Hit(Kept):
        times: list[int] = field(default_factory=lambda: [0])

        def step(self, objective: Any, x: Tensor, state: Any) -> Any:
            x, state = self.solver.step(objective, x, state)
            self.times[0] += 1
            if self.times[0] == 9:
                x[3] *= 2.0**16  # as a bit of the exponent does
            return x, state

    with pytest.warns(UserWarning, match="steps have led elsewhere when they were done again"):
        result = run(f, Hit(Sgd(lr=0.003)), CHECKS)
    assert same(result, clean) and result.rollbacks == 1


def test_a_jump_that_comes_again_is_the_method_s_own():
    """Nobody hears of it: records come once, and the run is that without checks."""

    @dataclass(frozen=True)
    class Jumping:
        def init(self, objective: Any, x: Tensor) -> State:
            return State()

        def step(self, objective: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
            factor = 100.0 if state.step % 5 == 4 else 1.0
            return (x - 0.003 * objective.gradient(x)) * factor, state

    f, told = quadratic(20), []
    clean = run(f, Jumping(), OFF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(f, Jumping(), CHECKS, monitors=[told.append])
    assert same(result, clean) and result.rollbacks == 0 and not result.state.notes
    assert [record.step for record in told] == list(range(31))


def test_a_claim_of_convergence_is_checked():
    """A flipped exponent makes the largest entry of a gradient tiny: without a check the run would end there."""
    f = quadratic(1)

    def strike(x: Tensor, g: Tensor) -> None:
        flip(g, 62, 0)

    options = {"stop": Stop(max_steps=30, atol=1e-9)}
    start = torch.full((1,), 50.0, dtype=torch.float64)
    wrong = minimise(Struck(f, strike, range(3, 4)), start, Sgd(lr=0.1), detection=OFF, **options)
    assert wrong.status is Status.converged_atol and wrong.record.step == 2
    with pytest.warns(UserWarning, match="the gradient is another one"):
        right = minimise(Struck(f, strike, range(3, 4)), start, Sgd(lr=0.1), detection=Detection(1e-9), **options)
    clean = minimise(f, start, Sgd(lr=0.1), detection=OFF, **options)
    assert same(right, clean) and right.record.step > 2


def test_a_wrong_gradient_that_is_always_the_same_is_found_by_values():
    """A persistent error ends the run: it is no use to go back."""

    @dataclass(frozen=True)
    class Wrong(Around):
        def gradient(self, x: Tensor) -> Tensor:
            return self.f.gradient(x) * 1.2

    with pytest.warns(UserWarning, match="the gradient is not the slope of the objective"):
        result = run(Wrong(quadratic(20)), Sgd(lr=0.003), ALWAYS)
    assert result.status is Status.corrupted and result.status.failed and len(result.history.records) == 1


def test_an_error_that_comes_back_ends_the_run_with_the_last_good_iterate():
    f = quadratic(20)
    clean = run(f, Sgd(lr=0.003), OFF, steps=7)
    at = range(9, 10**6)  # the ninth evaluation and all later ones
    with pytest.warns(UserWarning, match="the run ends with step"):
        result = run(Struck(f, lambda x, g: flip(x, 20), at), Sgd(lr=0.003), CHECKS)
    assert result.status is Status.corrupted and result.status.failed and result.rollbacks == 3
    assert result.state.step == result.record.step <= 7
    assert bool(torch.isfinite(result.x).all()) and result.record.measure in clean.history.column("measure")


def test_nothing_kept_means_no_way_back():
    f = quadratic(20)
    with pytest.warns(UserWarning, match="there is nothing to go back to"):
        result = run(Struck(f, lambda x, g: flip(x, 20)), Sgd(lr=0.003), replace(CHECKS, most_bytes=0))
    assert result.status is Status.corrupted and result.rollbacks == 0


def test_what_diverges_diverges_and_is_not_suspected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(quadratic(20), Sgd(lr=1e3), ALWAYS, steps=300)
    assert result.status is Status.diverged and result.rollbacks == 0


def test_a_checkpoint_gets_only_what_has_been_checked():
    f, seen = quadratic(20), {}

    def keep(x: Tensor, state: State, history: Any) -> None:
        seen[state.step] = x.clone()

    def strike(x: Tensor, g: Tensor) -> None:
        x.data[3] = math.nan  # the gradient is that of before: nothing else tells

    solver, clean = Sgd(lr=0.003), run(f, Sgd(lr=0.003), OFF, steps=9)
    schedule = Schedule(keep=keep, every=Interval(math.inf, 9))
    struck = Struck(f, strike, range(10, 11))  # one gradient at the start, and one per step
    with pytest.warns(UserWarning, match="the state is not finite"):
        result = run(struck, solver, Detection(share=1e-9), schedule=schedule)
    assert torch.equal(seen[9], clean.x) and result.rollbacks == 1


def test_an_iterate_that_leaves_its_bounds_is_found_at_the_end():
    """Only the last step is looked at, and the bits of the step that has moved it out are its own."""
    f = quadratic(20, bounded=True)

    @dataclass(frozen=True)
    class Leaving(Kept):
        times: list[int] = field(default_factory=lambda: [0])

        def step(self, objective: Any, x: Tensor, state: Any) -> Any:
            x, state = self.solver.step(objective, x, state)
            self.times[0] += 1
            if self.times[0] == 30:
                x[3] = f.bounds.lower[3] - 1e-3
            return x, state

    clean = run(f, AdaGrad(), OFF)
    with pytest.warns(UserWarning, match="the iterate is outside of its bounds"):
        result = run(f, Leaving(AdaGrad()), Detection(share=1e-9))
    assert same(result, clean) and result.rollbacks == 1


@dataclass
class Declared(State):
    squares: Tensor = field(default_factory=lambda: torch.ones(2), metadata=FINITE | RISING | REPLICATED)
    pairs: LbfgsPairs = field(default_factory=LbfgsPairs)


def test_declarations_are_read_off_the_fields():
    state = Declared()
    [leaf] = [part for part in leaves(state) if isinstance(part, Leaf)]
    assert leaf.where == "state.squares" and leaf.says(FINITE) and leaf.says(RISING) and leaf.says(REPLICATED)
    assert any(part is state.pairs for part in leaves(state))
    lower = replace(leaf, tensor=torch.tensor([2.0, 0.5]))
    assert list(fallen([leaf], {"state.squares": torch.tensor([1.0, 0.5])})) == []
    assert list(fallen([lower], {"state.squares": torch.ones(2)})) == ["state.squares"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.bool])
@pytest.mark.parametrize("n", [1, 7, 8])
def test_every_single_bit_changes_the_sum(dtype, n):
    tensor = torch.linspace(-2, 3, n).to(dtype)
    before = sums_of_bits([tensor])
    octets = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1).view(torch.uint8)
    for k in range(len(octets)):
        for bit in range(8):
            octets[k] ^= 1 << bit
            assert sums_of_bits([tensor]) != before and checksum(sums_of_bits([tensor])) != checksum(before)
            octets[k] ^= 1 << bit
    assert sums_of_bits([tensor]) == before and 0 <= checksum(before) < 2**53


@pytest.mark.parametrize("where", ["steps", "differences"])
def test_a_pair_that_does_not_fit_its_curvature_is_found(where):
    f = quadratic(20)
    result = run(f, LBFGS(), OFF, steps=6)
    pairs = result.state.pairs
    assert pairs.fault() == ""
    flip(getattr(pairs, where)[pairs.newest], 62)
    assert "curvature" in pairs.fault() or "scale" in pairs.fault()


def test_slopes_are_those_of_values():
    for f in (quadratic(20), quadratic(20, bounded=True), Rosenbrock()):
        x = f.bounds.project(torch.full((f.size,), 0.3, dtype=torch.float64))
        g = f.gradient(x)
        assert is_slope(f, x, g) and not is_slope(f, x, 1.2 * g)
        assert not is_another(f, x, g, 1.0, SERIAL) and is_another(f, x, 1.2 * g, 1.0, SERIAL)


def test_sums_in_another_order_are_no_fault():
    """A gradient that differs each time by rounding, or more, is not deterministic: nothing can be said of it."""
    f = Noisy(quadratic(20), 0.5)
    x, count = torch.ones(20, dtype=torch.float64), iter(range(100))

    @dataclass(frozen=True)
    class Restless(Around):
        def gradient(self, x: Tensor) -> Tensor:
            return f.sample(next(count)).gradient(x)

    restless = Restless(f)
    assert not is_another(restless, x, restless.gradient(x), 1.0, SERIAL)


@pytest.mark.parametrize("options", [{"share": -1.0}, {"share": 2.0}, {"verify_every": -1}, {"most_bytes": -1}])
def test_what_cannot_be_meant_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Detection(**options)
