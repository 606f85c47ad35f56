"""Buffers of modules that change with every evaluation of a loss, as running statistics do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Place = tuple[nn.Module, str]


class Buffers:
    """Buffers of modules that an evaluation changes, and how to undo that.

    A write shows in the version of a tensor, but not one of torch's batch normalisation: such a write shows in the
    versions of other buffers of its module, and in the sum of the buffer, which is looked at once.
    """

    def __init__(self) -> None:
        """Know no buffer."""
        self._stamps: dict[Place, tuple[int, int]] = {}
        self._sums: dict[Place, Tensor] = {}
        self._moving: list[Place] = []
        self._unversioned: set[nn.Module] = set()
        self._saved: list[tuple[Place, Tensor, Tensor]] | None = None

    def begin(self) -> None:
        """Remember how the known buffers are before the first evaluation of a step."""
        self._saved = None
        self._stamps = {place: _stamp(place) for place in self._stamps}

    def see(self, module: nn.Module) -> None:
        """Remember how the buffers of a module are before it is called, where they are not known.

        Parameters
        ----------
        module : nn.Module
            About to be called.
        """
        for name, buffer in module._buffers.items():
            if buffer is not None and (module, name) not in self._stamps:
                self._stamps[module, name] = _stamp((module, name))
                self._sums[module, name] = buffer.detach().sum()

    def end(self) -> None:
        """Find out after the first evaluation which buffers it changed."""
        for (module, name), total in self._sums.items():
            buffer = module._buffers[name]
            if buffer is not None and not torch.equal(buffer.detach().sum(), total):
                self._unversioned.add(module)
        self._sums.clear()
        moved = {module for (module, name), stamp in self._stamps.items() if _stamp((module, name)) != stamp}
        self._moving = [place for place in self._stamps if place[0] in moved | self._unversioned]

    def save(self) -> None:
        """Copy the buffers that change, before the second evaluation of a step."""
        if self._saved is None:
            places = [(place, place[0]._buffers[place[1]]) for place in self._moving]
            self._saved = [(place, buffer, buffer.clone()) for place, buffer in places if buffer is not None]

    def put_back(self) -> int:
        """Undo what an evaluation did to them, and return their number."""
        for (module, name), buffer, value in self._saved or ():
            module._buffers[name] = buffer
            buffer.copy_(value)
        return len(self._saved or ())


def _stamp(place: Place) -> tuple[int, int]:
    """Return what changes when a buffer is written to or exchanged."""
    buffer = place[0]._buffers.get(place[1])
    return id(buffer), -1 if buffer is None or buffer.is_inference() else buffer._version
