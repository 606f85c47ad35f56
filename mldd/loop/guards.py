"""The watch for silent errors: bits that memory, a link or a processor has changed without anybody being told.

Cheap checks are made as often as a share of the run's time allows; where one fails, the run goes back to the last
iterate and state that have passed.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Objective, Remembered, memory_of, uncounted
from mldd.loop.evaluations import is_another, is_slope
from mldd.loop.invariants import REPLICATED, checksum, fallen, is_finite, parts_of, sums_of_bits, tensors_of
from mldd.loop.monitor import History, Record
from mldd.loop.packing import FINITE, is_resumable
from mldd.loop.status import Status
from mldd.loop.validation import Validation
from mldd.ranks import Communicator

# What is looked for; the places of the counts that ranks sum.
FAULTS = (
    "memory has changed between two steps",
    "the state is not finite",
    "the iterate is outside of its bounds",
    "accumulators have fallen",
    "curvature pairs do not fit together",
    "the gradient is another one when it is evaluated again",
    "the gradient is not the slope of the objective",
    "ranks have different iterates or states",
)
_ELSEWHERE = "steps have led elsewhere when they were done again"
_AGAIN = "a jump, and the steps to it are done again"  # no fault yet
_CHANGED, _INFINITE, _OUTSIDE, _FALLEN, _PAIRS, _ANOTHER, _NO_SLOPE, _APART = range(len(FAULTS))
_JUMP = 10.0  # growth of the measure in a step after which the gradient is evaluated again
_BACK = 3.0  # factor by which the measure behind a jump is lower when a flipped bit was its reason
_DOUBTS = 3  # jumps of a run whose steps are done again
_ROUNDING = 1e3  # of an iterate at its bounds, in units of rounding of its largest entry
_STRIKES = 2  # times that the run goes back for the same step


@dataclass(frozen=True)
class Detection:
    """How a run looks for silent errors.

    A check compares the bits of iterate and state with those after the step before, the ranks with each other, and what
    solvers declare of their states (`FINITE`, `REPLICATED`, `RISING`, and records with ``fault()``). Checks are made as
    often as `share` allows, before each checkpoint and at the end. A gradient by which a run claims to have converged,
    that is not finite or ten times that of the step before, is evaluated once more; where it stays ten times as large
    in a run that is verified, the steps since the last copy are done again without a word, at most three times in a
    run, and a measure that is another one then was an error. Other runs do no step twice, so that what they cost does
    not depend on when there was time for a copy.

    Parameters
    ----------
    share : float
        Share of the run's time that checks may take; 0: none are made.
    verify_every : int
        Steps between two verifications, at which the gradient is evaluated again and compared with a difference of
        values as well, and checks are made at every step; 0: no verifications.
    most_bytes : int
        Most memory for the copy of iterate and state to which a run goes back; where they are larger, a run ends when
        an error is found.

    References
    ----------
    Aupy, Benoit, Herault, Robert, Vivien, Zaidouni, On the combination of silent error detection and checkpointing,
    PRDC 2013, hal-00836871: checkpoints are to be verified before they are written, and checks more frequent than
    checkpoints. Checks with a certain cost C here have the period C / share, in memory.
    """

    share: float = 0.01
    verify_every: int = 0
    most_bytes: int = 2**30

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"`share` must be from 0 to 1, got {self.share}")
        for name in ("verify_every", "most_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")

    @property
    def is_off(self) -> bool:
        """Whether nothing is looked for."""
        return self.share == 0 and self.verify_every == 0


@dataclass
class _Kept:
    """The last iterate and state that have passed all checks.

    Attributes
    ----------
    x, state
        The copies.
    seal : int
        Their checksum: the copy lies in memory for long.
    records : int
        Length of the history.
    validation : dict
        State of the validation.
    random : tuple
        States of the global generators.
    memory : object
        What the samples of the objective remember.
    """

    x: Tensor
    state: Any
    seal: int
    records: int
    validation: dict[str, Any]
    random: tuple[Tensor, Any]
    memory: Any


@dataclass
class _Watch:
    """Where a watch is: what was measured, sealed and found.

    Attributes
    ----------
    is_due : bool
        A check is made after the next step.
    seal : int or None
        Checksum of iterate and state after the step; None: not taken.
    spent, mark : float
        Seconds in checks and copies on this rank, and those before the last check.
    check, copy, paid : float
        Seconds that a check and a copy take, and those of all so far: the numbers of rank 0, on all ranks.
    is_kept, has_copy : bool
        A copy is made in this step, if it passes, or has been made before.
    strikes, until : int
        Alarms in a row, and the step that has to be passed to forget them.
    first, last : float
        Measure at the start and at the step before, NaN where there was none.
    doubts, doubted : int, (int, float) or None
        Jumps so far whose steps were done again, and step and measure of the one to which they are done now.
    is_rounded : bool
        Ranks are known to differ in last digits.
    """

    is_due: bool = True
    seal: int | None = None
    spent: float = 0.0
    mark: float = 0.0
    check: float = 0.0
    copy: float = 0.0
    paid: float = 0.0
    is_kept: bool = True
    has_copy: bool = False
    strikes: int = 0
    until: int = -1
    first: float = math.nan
    last: float = math.nan
    doubts: int = 0
    doubted: tuple[int, float] | None = None
    is_rounded: bool = False


@dataclass(frozen=True)
class Ending:
    """What is about to be done with an iterate.

    Attributes
    ----------
    is_last : bool
        The run ends with it.
    is_claim : bool
        It is said to be a solution, by its gradient.
    is_written : bool
        It goes to a checkpoint.
    is_diverged : bool
        It is said to have diverged.
    """

    is_last: bool = False
    is_claim: bool = False
    is_written: bool = False
    is_diverged: bool = False


class Detector:
    """The watch of one run.

    Parameters
    ----------
    how : Detection
        What is done.
    comm : Communicator
        The ranks.
    objective : Objective
        What is minimised.
    last : int
        The most steps of the run: the last one is checked in any case.
    has_values : bool
        Whether the objective may be asked for values.
    """

    def __init__(self, how: Detection, comm: Communicator, objective: Objective, last: int, has_values: bool) -> None:
        self.how, self.comm, self._has_values, self._last = how, comm, has_values, last
        self._memory, self._bounds = memory_of(objective), objective.bounds
        self.rollbacks = 0
        self._watch = _Watch()
        self._kept: _Kept | None = None
        self._began: float | None = None  # seconds of the first record, whose step is next
        self._passed: int | None = None  # checksum of what has been looked at in this step, for `keep`
        self._notes: dict[str, int] = {}

    @property
    def _places(self) -> int:
        """Number of faults and ranks."""
        return len(FAULTS) + self.comm.ranks

    @contextmanager
    def _paid(self) -> Iterator[None]:
        """Yield nothing; the time of the block is that of checks, and nothing in it is counted as work."""
        begin = time.perf_counter()
        with uncounted():
            yield
        self._watch.spent += time.perf_counter() - begin

    def seal(self, x: Tensor, state: Any) -> None:
        """Take the bits of iterate and state after a step, if they are looked at in this one.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver; None before the first step.
        """
        watch = self._watch
        watch.seal, watch.mark = None, watch.spent
        if state is not None and watch.is_due and not self.how.is_off:
            with self._paid():
                watch.seal = checksum(sums_of_bits(tensors_of(x, state)))

    def look(self, f: Remembered, x: Tensor, state: Any, record: Record, ending: Ending) -> str:
        """Return what is found by the checks of a step, the same on all ranks, or an empty text.

        Without a check that is due or has a reason (the run ends, is written, or looks odd) nothing is done. Otherwise
        ranks sum a few numbers once.

        Parameters
        ----------
        f : Remembered
            The objective of this step, which knows its gradient at `x`.
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        record : Record
            Of the step; the same on all ranks.
        ending : Ending
            What is about to be done.
        """
        if self.how.is_off:
            return ""
        watch, measure, every = self._watch, record.measure, self.how.verify_every
        watch.first = measure if math.isnan(watch.first) else watch.first
        is_odd = not (measure <= _JUMP * watch.last or math.isnan(watch.last))
        watch.last, self._passed = measure, None
        is_whole = watch.is_due or ending.is_last or ending.is_written
        is_verified = every > 0 and record.step % every == 0 and math.isfinite(measure)
        found = ""
        if is_whole or is_odd:
            with self._paid():
                is_sane = math.isfinite(measure) and not ending.is_diverged
                told = self._told(x, state, is_sane) if is_whole else [0.0] * self._places
                if is_odd or ending.is_claim or is_verified:
                    told[_ANOTHER] = float(is_another(f.f, x, f.gradient(x), watch.first, self.comm))
                if is_verified and self._has_values:
                    told[_NO_SLOPE] = float(not is_slope(f.f, x, f.gradient(x)))
                costs = (watch.spent - watch.mark, watch.copy, watch.spent)
                told += costs if self.comm.rank == 0 else (0.0, 0.0, 0.0)
                *told, check, watch.copy, watch.paid = self.comm.sum_scalars(told)
            watch.check = check if is_whole else watch.check
            found = self._verdict(told, x, state)
        self._plan(record, is_whole)
        return found or self._doubt(record, is_odd)

    def _doubt(self, record: Record, is_odd: bool) -> str:
        """Return that steps are to be done again, or that they have led elsewhere than before."""
        watch, doubted = self._watch, self._watch.doubted
        if doubted is not None and record.step >= doubted[0]:
            watch.doubted = None
            return _ELSEWHERE if record.measure * _BACK < doubted[1] else ""
        may = self.how.verify_every > 0 and is_odd and doubted is None and watch.doubts < _DOUBTS
        if may and watch.has_copy and math.isfinite(record.measure):
            watch.doubts, watch.doubted = watch.doubts + 1, (record.step, record.measure)
            return _AGAIN
        return ""

    def _plan(self, record: Record, is_whole: bool) -> None:
        """Decide whether a copy is made in this step, and a check after the next one, the same on all ranks.

        All that is spent stays within its share of the time, by the numbers that rank 0 has told at the last check;
        the last step of a run is checked in any case, and every one while something is wrong.
        """
        watch = self._watch
        if self._began is None:
            self._began = record.cost.seconds
        left = self.how.share * (record.cost.seconds - self._began) - watch.paid
        always = self.how.verify_every > 0 or watch.strikes > 0
        watch.is_kept = is_whole and (always or not watch.has_copy or watch.copy <= left)
        watch.has_copy |= watch.is_kept
        due = watch.check + (watch.copy if watch.is_kept else 0.0) <= left
        watch.is_due = always or due or record.step + 1 >= self._last

    def keep(self, x: Tensor, state: Any, history: History, validation: Validation | None) -> None:
        """Copy iterate and state if they have been looked at in this step.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        history : History
            All records, the one of this step included.
        validation : Validation or None
            That of the run.
        """
        watch, seal, self._passed = self._watch, self._passed, None
        if seal is None or not watch.is_kept:
            return
        before = watch.spent
        with self._paid():
            self._kept = None  # first: its memory is used again
            memory = None if self._memory is None else self._memory.state()
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(x, state))
            if size <= self.how.most_bytes and is_resumable(state):
                said = {} if validation is None else validation.state()
                known = len(history.records), said, _random(), memory
                self._kept = _Kept(x.clone(), copy.deepcopy(state), seal, *known)
        watch.copy = watch.spent - before

    def go_back(
        self, found: str, x: Tensor, state: Any, history: History, validation: Validation | None
    ) -> tuple[Tensor, Any, Status | None]:
        """Return the last iterate and state that have passed, and the status, with which the run ends if it is one.

        It ends where nothing was kept or could not be kept whole, and where the same step has failed too often.

        Parameters
        ----------
        found : str
            What was found.
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        history : History
            All records; those behind the state that is returned are dropped.
        validation : Validation or None
            That of the run.
        """
        kept, step = self._kept, state.step
        is_lost = kept is None or checksum(sums_of_bits(tensors_of(kept.x, kept.state))) != kept.seal
        self._watch.is_due, self._watch.last = True, math.nan
        if self.comm.sum_scalars([float(is_lost)])[0] or kept is None:
            if found == _AGAIN:
                self._watch.doubted = None
                return x, state, None
            self._say(f"step {step}: {found}; there is nothing to go back to")
            return x, state, Status.corrupted
        _set_random(kept.random)
        if self._memory is not None:
            self._memory.restore(kept.memory, x.device)
        if found == _AGAIN:
            return kept.x.clone(), copy.deepcopy(kept.state), None
        self.rollbacks, self._watch.doubted = self.rollbacks + 1, None
        is_over = self._watch.strikes > _STRIKES
        self._say(f"step {step}: {found}; the run {'ends with' if is_over else 'goes back to'} step {kept.state.step}")
        del history.records[kept.records :]
        if validation is not None:
            for name, value in kept.validation.items():
                setattr(validation, name, value)
        kept.state.note(f"silent errors, after which the run went back: {found}")
        return kept.x.clone(), copy.deepcopy(kept.state), Status.corrupted if is_over else None

    def _say(self, text: str) -> None:
        if self.comm.rank == 0:
            warnings.warn(text, stacklevel=4)

    def _told(self, x: Tensor, state: Any, is_sane: bool) -> list[float]:
        """Return how often each fault is found on this rank, and the checksum of what ranks share in its place.

        What a run that diverges does to its state is not laid to the memory: then `is_sane` is false.
        """
        found, records = parts_of(state)
        sums = sums_of_bits([x, *(leaf.tensor for leaf in found)])
        shared = [s for s, leaf in zip(sums[1:], found, strict=True) if leaf.says(REPLICATED)]
        told = [0.0] * self._places
        told[len(FAULTS) + self.comm.rank] = float(checksum([sums[0], *shared]))
        self._passed = checksum(sums)
        told[_CHANGED] = float(self._watch.seal not in (None, self._passed))
        if is_sane:
            finite = [x, *(leaf.tensor for leaf in found if leaf.says(FINITE))]
            before = {} if self._kept is None else {leaf.where: leaf.tensor for leaf in parts_of(self._kept.state)[0]}
            told[_INFINITE] = float(not all(map(is_finite, finite)))
            allowed = _ROUNDING * torch.finfo(x.dtype).eps
            if not self._bounds.is_free:
                told[_OUTSIDE] = float(self._bounds.violation(x) > allowed * max(1.0, float(x.abs().max())))
            told[_FALLEN] = float(any(fallen(found, before)))
            told[_PAIRS] = float(any(record.fault() for record in records))
        return told

    def _verdict(self, told: Sequence[float], x: Tensor, state: Any) -> str:
        """Return what was found on any rank; where something was, the step gets a strike."""
        watch, slots, step = self._watch, told[len(FAULTS) :], state.step
        found = [text for text, times in zip(FAULTS, told, strict=False) if times]
        if any(slot != slots[0] for slot in slots) and not self._differ_by_rounding(x, state):
            found.append(FAULTS[_APART])
        if found:
            watch.strikes, watch.until = watch.strikes + 1, max(watch.until, step)
            self._passed = None
        elif step > watch.until:
            watch.strikes = 0
        return " and ".join(found)

    def _differ_by_rounding(self, x: Tensor, state: Any) -> bool:
        """Return whether ranks differ in last digits alone, and have done so again after they went back.

        Processors of different kinds, and devices that add up in any order, differ again; a flipped bit does not.
        """
        watch = self._watch
        if watch.strikes == 0 and not watch.is_rounded:
            return False
        with self._paid():
            shared = [x, *(leaf.tensor for leaf in parts_of(state)[0] if leaf.says(REPLICATED))]
            mine = [tensor.reshape(-1).double() for tensor in shared]
            means = torch.split(self.comm.sum(torch.cat(mine)) / self.comm.ranks, [len(part) for part in mine])
            far = 0.0
            for tensor, part, mean in zip(shared, mine, means, strict=True):
                allowed = torch.finfo(tensor.dtype).eps ** 0.5 if tensor.is_floating_point() else 0.0
                far += float(not float((part - mean).abs().max()) <= allowed * float(mean.abs().max()))
            if self.comm.sum_scalars([far])[0]:
                return False
        if not watch.is_rounded:
            self._say(
                f"step {state.step}: ranks differ in last digits, and again when the steps were done again, as "
                "processors of different kinds do; such differences are no errors in this run"
            )
        watch.is_rounded = True
        return True


def _random() -> tuple[Tensor, Any]:
    return torch.get_rng_state(), np.random.get_state()


def _set_random(states: tuple[Tensor, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
