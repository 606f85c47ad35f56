"""The device that is measured: how long a call takes on it, and how long there is for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A device.

    Parameters
    ----------
    name : str
        cpu or cuda.
    quick : bool
        Small sizes and few repeats, to see that everything runs.
    end : float
        When to begin nothing new, as `time.perf_counter` counts.
    """

    name: str
    quick: bool = False
    end: float = field(default_factory=lambda: time.perf_counter() + 500.0)

    @property
    def is_cuda(self) -> bool:
        """Whether calls return before they are done."""
        return self.name.startswith("cuda")

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self.end

    @property
    def card(self) -> str:
        """Name of the card."""
        return torch.cuda.get_device_name() if self.is_cuda else "cpu"

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], least: float = 0.05) -> float:
        """Return the median seconds of a call; so many are made at once that `least` seconds pass (quick: one)."""
        call()
        self.wait()
        calls, found = 1, []
        while True:
            once = self._timed(call, calls)
            if self.quick or once >= least or calls >= 1000:
                break
            calls = min(1000, 2 * calls if once <= 0 else max(2 * calls, round(1.2 * calls * least / once)))
        for _ in range(1 if self.quick else 5):
            found.append(self._timed(call, calls) / calls)
        return statistics.median(found)

    def in_turn(self, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Return the seconds of several calls."""
        return {name: self.seconds(call) for name, call in calls.items()}

    def once(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of one call, of CPU time where that is the device, and what it returns."""
        self.wait()
        clock = time.perf_counter if self.is_cuda else time.process_time
        begin = clock()
        result = call()
        self.wait()
        return clock() - begin, result

    def _timed(self, call: Callable[[], object], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return time.perf_counter() - begin


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors over the largest entry of the first."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-300))


def attempts(cases: dict[str, Callable[[], Row]], device: Device) -> list[Row]:
    """Return a row for each case; one that fails is a row that says so, and what there was no time for another."""
    rows: list[Row] = []
    for name, case in cases.items():
        if device.is_late:
            rows.append({"case": name, "left out": "the time was up"})
            continue
        try:
            rows.append({"case": name} | case())
        except Exception as error:  # noqa: BLE001 (all that can fail on a card nobody has seen)
            rows.append({"case": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
        if device.is_cuda:
            torch.cuda.empty_cache()
    return rows
