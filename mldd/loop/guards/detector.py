"""The watch of one run: cheap checks, as often as a share of its time allows, and the way back where one fails."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Objective, Remembered, memory_of, uncounted
from mldd.loop import FINITE, History, Record, Status, Validation, is_resumable
from mldd.loop.guards.detection import Detection, Ending
from mldd.loop.guards.gradients import is_another, is_slope
from mldd.loop.guards.invariants import REPLICATED, checksum, fallen, is_finite, parts_of, sums_of_bits, tensors_of
from mldd.loop.guards.snapshot import Snapshot
from mldd.loop.guards.watch import AGAIN, Watch
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
_CHANGED, _INFINITE, _OUTSIDE, _FALLEN, _PAIRS, _ANOTHER, _NO_SLOPE, _APART = range(len(FAULTS))
_ROUNDING = 1e3  # of an iterate at its bounds, in units of rounding of its largest entry
_STRIKES = 2  # times that the run goes back for the same step


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
        self._watch = Watch()
        self._kept: Snapshot | None = None
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
        self._watch.times.spent += time.perf_counter() - begin

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
        watch.seal, watch.times.mark = None, watch.times.spent
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
        watch, times, measure, every = self._watch, self._watch.times, record.measure, self.how.verify_every
        is_odd, self._passed = watch.jumps.is_one(measure), None
        is_whole = watch.is_due or ending.is_last or ending.is_written
        is_verified = every > 0 and record.step % every == 0 and math.isfinite(measure)
        found = ""
        if is_whole or is_odd:
            with self._paid():
                is_sane = math.isfinite(measure) and not ending.is_diverged
                told = self._told(x, state, is_sane) if is_whole else [0.0] * self._places
                if is_odd or ending.is_claim or is_verified:
                    told[_ANOTHER] = float(is_another(f.f, x, f.gradient(x), watch.jumps.first, self.comm))
                if is_verified and self._has_values:
                    told[_NO_SLOPE] = float(not is_slope(f.f, x, f.gradient(x)))
                told += times.told if self.comm.rank == 0 else (0.0, 0.0, 0.0)
                *told, check, times.copy, times.paid = self.comm.sum_scalars(told)
            times.check = check if is_whole else times.check
            found = self._verdict(told, x, state)
        watch.plan(self.how, record, self._last, is_whole)
        return found or watch.jumps.doubt(record, every > 0 and is_odd and watch.has_copy)

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
        if seal is None or not watch.is_copied:
            return
        before = watch.times.spent
        with self._paid():
            self._kept = None  # first: its memory is used again
            memory = None if self._memory is None else self._memory.state()
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(x, state))
            if size <= self.how.most_bytes and is_resumable(state):
                self._kept = Snapshot.of(x, state, seal, history, validation, memory)
        watch.times.copy = watch.times.spent - before

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
        kept, step, watch = self._kept, state.step, self._watch
        watch.is_due, watch.jumps.last = True, math.nan
        if self.comm.sum_scalars([float(kept is None or kept.is_damaged)])[0] or kept is None:
            watch.jumps.doubted = None
            if found == AGAIN:
                return x, state, None
            self._say(f"step {step}: {found}; there is nothing to go back to")
            return x, state, Status.corrupted
        is_over = False
        if found != AGAIN:
            self.rollbacks, watch.jumps.doubted = self.rollbacks + 1, None
            is_over, to = watch.strikes > _STRIKES, kept.state.step
            self._say(f"step {step}: {found}; the run {'ends with' if is_over else 'goes back to'} step {to}")
            kept.rewind(history, validation)
            kept.state.note(f"silent errors, after which the run went back: {found}")
        return *self._again(kept), Status.corrupted if is_over else None

    def _again(self, kept: Snapshot) -> tuple[Tensor, Any]:
        x, state = kept.iterate()
        if self._memory is not None:
            self._memory.restore(kept.memory, x.device)
        return x, state

    def last(self, history: History, validation: Validation | None) -> tuple[Tensor, Any] | None:
        """Return the last iterate and state that have passed; None where none was kept.

        Parameters
        ----------
        history : History
            All records; those behind the state that is returned are dropped.
        validation : Validation or None
            That of the run.
        """
        kept = self._kept
        if kept is None or kept.is_damaged:
            return None
        kept.rewind(history, validation)
        return self._again(kept)

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
