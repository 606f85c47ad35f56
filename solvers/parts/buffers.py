"""Buffers of modules that change with every evaluation of a loss, as running statistics do."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Place = tuple[nn.Module, str]
_SUMMED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def modules_alive() -> list[nn.Module]:
    """Return all modules there are, those that a closure may call among them.

    The garbage collector knows them. Hooks on calls would, too, but torch.compile compiles anew for every hook.
    """
    return [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]


def holders(parameters: Sequence[nn.Parameter], modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules that hold any of the parameters, directly or further below, and all those below them.

    Parameters
    ----------
    parameters : list of Parameter
        Of one model, or several.
    modules : iterable of nn.Module
        Where to look.
    """
    wanted = {id(p) for p in parameters}
    roots = [module for module in modules if any(id(p) in wanted for p in module.parameters())]
    return list(dict.fromkeys(module for root in roots for module in root.modules()))


class Buffers:
    """Buffers of modules that an evaluation changes, and how to undo that.

    A write shows in the version of a tensor, but not one of torch's batch normalisation: such a write shows in the
    versions of other buffers of its module, and in the sum of the buffer, which is looked at once.

    Parameters
    ----------
    modules : iterable of nn.Module
        All that the first evaluation may change, each there once.
    held : iterable of nn.Module
        Those that later evaluations may change although the first does not, for they belong to the model.
    """

    def __init__(self, modules: Iterable[nn.Module] = (), held: Iterable[nn.Module] = ()) -> None:
        """Look at all buffers before the first evaluation."""
        self._held = set(held)
        places = [((module, name), b) for module in modules for name, b in module.named_buffers(recurse=False)]
        self._stamps = {place: _stamp(place) for place, _ in places}
        self._sums = {place: b.detach().sum() for place, b in places if _can_be_summed(b)}
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
            buffer = _buffer((module, name))
            if buffer is not None and not torch.allclose(buffer.detach().sum(), total, rtol=0, atol=0, equal_nan=True):
                self._unversioned.add(module)
        self._sums.clear()
        moved = {module for (module, name), stamp in self._stamps.items() if _stamp((module, name)) != stamp}
        moved |= self._unversioned
        self._moving = [place for place in self._stamps if place[0] in moved]
        self._held |= moved
        self._stamps = {place: stamp for place, stamp in self._stamps.items() if place[0] in self._held}

    def save(self) -> None:
        """Copy the buffers that change, before the second evaluation of a step."""
        if self._saved is None:
            places = [(place, _buffer(place)) for place in self._moving]
            self._saved = [(place, buffer, buffer.clone()) for place, buffer in places if buffer is not None]

    def put_back(self) -> int:
        """Undo what an evaluation did to them, and return their number."""
        for (module, name), buffer, value in self._saved or ():
            if _buffer((module, name)) is not buffer:
                setattr(module, name, buffer)
            buffer.copy_(value)
        return len(self._saved or ())


def _buffer(place: Place) -> Tensor | None:
    return getattr(place[0], place[1], None)


def _can_be_summed(b: Tensor) -> bool:
    return b.dtype in _SUMMED and b.layout == torch.strided and not b.is_meta


def _stamp(place: Place) -> tuple[int, int]:
    """Return what changes when a buffer is written to or exchanged."""
    buffer = _buffer(place)
    return id(buffer), -1 if buffer is None or buffer.is_inference() else buffer._version
