"""Buffers of modules that change with every evaluation of a loss, as running statistics do."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Place = tuple[nn.Module, str]


def holders(parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Return all modules alive that hold any of the parameters, directly or further below, and all those below them.

    The garbage collector knows them. Hooks on calls would, too, but torch.compile compiles anew for every hook.

    Parameters
    ----------
    parameters : list of Parameter
        Of one model, or several.
    """
    wanted = {id(p) for p in parameters}
    alive = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]
    roots = [module for module in alive if any(id(p) in wanted for p in module.parameters())]
    return list(dict.fromkeys(module for root in roots for module in root.modules()))


class Buffers:
    """Buffers of modules that an evaluation changes, and how to undo that.

    A write shows in the version of a tensor, but not one of torch's batch normalisation: such a write shows in the
    versions of other buffers of its module, and in the sum of the buffer, which is looked at once.

    Parameters
    ----------
    modules : iterable of nn.Module
        Each there once.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Look at all buffers before the first evaluation."""
        held = [((module, name), b) for module in modules for name, b in module._buffers.items() if b is not None]
        self._stamps = {place: _stamp(place) for place, _ in held}
        self._sums = {place: buffer.detach().sum() for place, buffer in held}
        self._moving: list[Place] = []
        self._unversioned: set[nn.Module] = set()
        self._saved: list[tuple[Place, Tensor, Tensor]] | None = None

    def begin(self) -> None:
        """Remember how the buffers are before the first evaluation of a step."""
        self._saved = None
        self._stamps = {place: _stamp(place) for place in self._stamps}

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
