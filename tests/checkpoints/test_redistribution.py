"""States on another number of ranks: what subdomains remember goes with them, all else has to be the same."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from mldd.algebra import Decomposition, Subdomain
from mldd.checkpoints.redistribution import redistributed
from mldd.loop import PER_SUBDOMAIN, SCRATCH, CheckpointError, State, pack, restore
from mldd.ranks import SERIAL
from mldd.solvers import LBFGS, AdaGrad
from mldd.solvers.parts import BatchLBFGS, Sweep
from tests.helpers import OneOfFour, quadratic

N = 12
SPANS = ((0, 4), (3, 7), (6, 8), (7, 12), (11, 12))  # of different lengths: rows are padded
F = quadratic(N, seed=2)


def decomposition(local=None):
    owned, subdomains = 0, []
    for begin, end in SPANS:
        indices = torch.arange(begin, end)
        subdomains.append(Subdomain(indices, indices >= owned))
        owned = end
    return Decomposition(N, subdomains[:4], _models, local)


def _models(d, f, x, g):
    return _Rows(d, f.A, f.b, x)


class _Rows:
    """The quadratic on every subdomain, its other unknowns fixed at x."""

    def __init__(self, d, A, b, x):
        self.d, self.A, self.b, self.x = d, A, b, x
        self.bounds = d.gather_bounds(F.bounds, d.gather(x))
        self.size = d.size

    def gradient(self, y):
        full = self.x + self.d.spread((y - self.d.gather(self.x)) * self.d.valid)
        rows = full @ self.A - self.b
        return torch.gather(rows, 1, self.d.indices) * self.d.valid

    def value(self, y):
        full = self.x + self.d.spread((y - self.d.gather(self.x)) * self.d.valid)
        return 0.5 * ((full @ self.A) * full).sum(1) - full @ self.b

    def value_and_gradient(self, y):
        return self.value(y), self.gradient(y)


def sweep(local, solver):
    made = decomposition(local)
    comm = OneOfFour() if len(made.local) < made.parts else SERIAL
    return Sweep(made, solver, steps=2, memory="keep", comm=comm)


def ranges(ranks):
    ends = [4 * k // ranks for k in range(ranks + 1)]
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def after(ranks, solver, sweeps=3):
    """States of all ranks after some sweeps from the same points."""
    states, x = [], torch.linspace(-1, 1, N, dtype=torch.float64)
    for local in ranges(ranks):
        made = sweep(local, solver)
        state = made.init(F, x)
        for k in range(sweeps):
            made.corrections(F, x / (k + 1), state)
        states.append(state)
    return states


SOLVERS = {
    "batch": AdaGrad(curvature="none"),
    "with pairs": AdaGrad(curvature="lbfgs"),
    "rows": BatchLBFGS(),
    "items": LBFGS(memory=2),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 2), (2, 5)])
def test_what_subdomains_remember_goes_with_them(solver, before, now):
    """The oracle: what the ranks that hold them now would remember, had they done the sweeps themselves."""
    solver = SOLVERS[solver]
    packed = [pack(state, "state") for state in after(before, solver)]
    for local, expected in zip(ranges(now), after(now, solver), strict=True):
        fresh = sweep(local, solver).init(F, torch.zeros(N, dtype=torch.float64))
        moved = restore(fresh, redistributed(fresh, packed))
        assert moved.subdomains == list(local) and torch.equal(moved.weights, expected.weights)
        made = sweep(local, solver)
        x = torch.cos(torch.arange(N, dtype=torch.float64))
        found, wanted = (made.corrections(F, x, state) for state in (moved, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_the_same_ranks_get_what_they_had():
    states = after(2, AdaGrad(curvature="lbfgs"))
    for state in states:
        fresh = sweep(range(state.subdomains[0], state.subdomains[-1] + 1), AdaGrad(curvature="lbfgs"))
        packed = pack(state, "state")
        found = redistributed(fresh.init(F, torch.zeros(N, dtype=torch.float64)), [packed])
        assert found["local"] is packed["local"]


@dataclass
class Local(State):
    rate: float = 1.0
    squares: Tensor = field(default_factory=lambda: torch.ones(2, 3))


@dataclass
class Outer(State):
    mean: float = 0.0
    subdomains: list[int] = field(default_factory=lambda: [0, 1])
    weights: Tensor = field(default_factory=lambda: torch.ones(2, 3), metadata=PER_SUBDOMAIN)
    local: Local = field(default_factory=Local, metadata=PER_SUBDOMAIN)
    scratch: Tensor = field(default_factory=lambda: torch.ones(7), metadata=SCRATCH)


def ranks_of_two(**changes):
    halves = []
    for k in range(2):
        local = Local(squares=torch.full((1, 3), float(k)), accepted=k + 1, notes={"cut": k})
        outer = Outer(subdomains=[k], weights=torch.ones(1, 3), local=local, scratch=torch.ones(k))
        halves.append(outer)
    for name, value in changes.items():
        where, _, last = name.rpartition("__")
        setattr(getattr(halves[1], where) if where else halves[1], last, value)
    return [pack(half, "state") for half in halves]


def test_counts_add_up_and_buffers_are_those_of_here():
    found = restore(Outer(), redistributed(Outer(), ranks_of_two()))
    assert torch.equal(found.local.squares, torch.tensor([[0.0] * 3, [1.0] * 3]))
    assert (found.local.accepted, found.local.notes, found.scratch.shape) == (3, {"cut": 1}, (7,))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mean": 2.0}, "`state.mean`"),
        ({"accepted": 3}, "`state.accepted`"),
        ({"local__rate": 0.5}, "`state.local.rate`"),
        ({"local__step": 4}, "`state.local.step`"),
    ],
)
def test_what_cannot_be_given_to_others_is_refused_by_name(changes, name):
    with pytest.raises(
        CheckpointError, match=f"{name} differs between the 2 ranks .* resume with mpiexec -n 2"
    ) as error:
        redistributed(Outer(), ranks_of_two(**changes))
    assert "\n" not in str(error.value)


def test_other_subdomains_are_refused():
    for numbers in ([1, 2], [0, 3]):
        with pytest.raises(CheckpointError, match=r"`state.subdomains` must have the subdomains .* once, got"):
            redistributed(replace(Outer(), subdomains=[0, 5]), ranks_of_two(subdomains=numbers))
