"""What inexact halos remember from step to step, as plain data and back: part of what a run goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.loop import CheckpointError
from mldd.problems.graphs.inexact_halo import HistoricalHalo, Inexact, Lane, StaleHalo


@dataclass(frozen=True, eq=False)
class HaloMemory:
    """The rows that the halos of all layers have kept on this rank.

    Parameters
    ----------
    halos : sequence of Inexact or None
        One per layer; most remember nothing.
    """

    halos: Sequence[Inexact | None]

    def state(self) -> list[Any]:
        """Return one entry per layer, after all messages under way have arrived: those of all ranks have been sent."""
        return [_state(halo) for halo in self.halos]

    def restore(self, state: list[Any] | None, device: torch.device) -> None:
        """Take back what `state` has returned; on other shards it is refused."""
        if not isinstance(state, list) or len(state) != len(self.halos):
            got = "none" if state is None else f"those of {len(state)} layers"
            raise CheckpointError(
                f"the checkpoint must have the halos' memories of {len(self.halos)} layers, got {got}; resume with the "
                "halos that wrote it, or start anew without --resume"
            )
        for layer, (halo, entry) in enumerate(zip(self.halos, state, strict=True)):
            _restore(halo, entry, f"the halo of layer {layer}", device)


def _state(halo: Inexact | None) -> Any:
    if isinstance(halo, StaleHalo):
        halo.settle()
        lanes = [(way, lane.arrived) for (way, *_), lane in halo.memory.lanes.items() if lane.arrived]
        return [{"way": way, "steps": [s for s, _ in kept], "rows": [r for _, r in kept]} for way, kept in lanes]
    if isinstance(halo, HistoricalHalo):
        return list(halo.memory.values())
    return None


def _restore(halo: Inexact | None, entry: Any, where: str, device: torch.device) -> None:
    if isinstance(halo, StaleHalo):
        halo.settle()
        halo.memory.lanes.clear()
        rows_of = {"out": halo.size, "back": len(halo.halo.index)}
        for kept in entry:
            way, rows = kept["way"], [_checked(r, rows_of[kept["way"]], where).to(device) for r in kept["rows"]]
            lane = Lane(arrived=list(zip(kept["steps"], rows, strict=True)))
            halo.memory.lanes[way, rows[0].shape[1:], rows[0].dtype] = lane
    elif isinstance(halo, HistoricalHalo):
        halo.memory.clear()
        for rows in entry:
            halo.memory[rows.shape[1:], rows.dtype] = _checked(rows, halo.size, where).to(device)


def _checked(rows: Tensor, size: int, where: str) -> Tensor:
    if len(rows) != size:
        raise CheckpointError(
            f"{where} must have {size} rows, got {len(rows)} in the checkpoint: the shards were cut anew; resume with "
            "those of the run, or start anew without --resume"
        )
    return rows
