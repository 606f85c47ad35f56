"""States of solvers as plain data, and back.

A state is a tree of dataclasses. What is kept of it is a tree of dicts and lists with tensors, numbers and strings as
leaves. Classes come from a *template*: the state that ``solver.init`` of the same solver makes, into which `restore`
fills what was saved. The metadata of a field may say more about it: `SCRATCH`, `FINITE`, `PER_SUBDOMAIN`.
"""

from __future__ import annotations

import copy
import pickle
import re
import typing
from collections import deque
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.loop.status import Status

# Metadata of fields of states, to be joined by ``|``.
SCRATCH = {"scratch": True}  # a buffer that is written before it is read: its shape is kept, its numbers are not
FINITE = {"finite": True}  # never NaN or infinite while a run is in order
PER_SUBDOMAIN = {"per subdomain": True}  # of the subdomains that the record lists in its field `subdomains`

_STATUS, _GENERATOR, _STATE_DICT, _SCRATCH = "!status", "!generator", "!state_dict", "!scratch"
_COUNTERS = ("step", "level", "accepted", "rejected")
_LARGEST = 2**53  # no counter of a run gets there


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used for this run."""


def unreadable(error: BaseException) -> str:
    """Return in a few words why torch could not read a file as data; its own advice is to trust the file, ours is not.

    Parameters
    ----------
    error : BaseException
        What torch raised.

    Examples
    --------
    >>> unreadable(RuntimeError("Unsupported global: GLOBAL posix.system was not an allowed global by default"))
    'it asks for posix.system, which no data file needs'
    """
    text = " ".join(str(error).split())
    asked = re.search(r"GLOBAL (\S+)", text)
    if asked:
        return f"it asks for {asked[1]}, which no data file needs"
    if isinstance(error, EOFError | pickle.UnpicklingError) or "zip archive" in text:
        return "it is truncated, or not a file of torch.save"
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


def restore(template: Any, saved: Any) -> Any:
    """Return a copy of `template`, a fresh state of the same solver, filled with what was saved.

    Parameters
    ----------
    template : dataclass
        What ``solver.init(objective, x)`` returns. Records that are None there take their class from the annotation.
    saved : dict
        What `pack` has returned.

    Raises
    ------
    CheckpointError
        A field is missing, unknown, or of another kind, shape or dtype.
    """
    return _restore(template, saved, "state", type(template))


def recognised(state: Any, g: Tensor) -> None:
    """Put `g` in the place of equal gradients of a state that was read: solvers know their point by the object.

    Parameters
    ----------
    state : State
        Of a solver.
    g : Tensor, shape (n,)
        The gradient at the iterate.
    """
    for record in _records(state):
        mine = getattr(record, "gradient", None)
        if isinstance(mine, Tensor) and mine.shape == g.shape and mine.dtype == g.dtype and mine.device == g.device:
            if torch.equal(mine, g):
                record.gradient = g


def is_resumable(state: Any) -> bool:
    """Return whether a run can go on from a checkpoint of `state`: no record in it has ``resumable = False``.

    Parameters
    ----------
    state : State
        Of a solver.
    """
    return all(getattr(record, "resumable", True) for record in _records(state))


def _records(value: Any) -> Iterator[Any]:
    if is_dataclass(value):
        yield value
        for f in fields(value):
            yield from _records(getattr(value, f.name))
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _records(item)


def pack(value: Any, where: str) -> Any:
    """Return `value` as dicts, lists, tensors, numbers and strings; `where` names it in errors.

    Parameters
    ----------
    value : object
        A state or a part of one.
    where : str
        Its name in messages.

    Raises
    ------
    CheckpointError
        A record says ``resumable = False``, or there is something else than data.
    """
    if isinstance(value, Status):
        return {_STATUS: value.name}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        mine = value.detach().cpu()
        if mine.is_contiguous() and mine.numel() * mine.element_size() == mine.untyped_storage().nbytes():
            return mine
        return mine.clone(memory_format=torch.contiguous_format)  # a view would drag its storage along
    if isinstance(value, torch.Generator):
        return {_GENERATOR: value.get_state()}
    if is_dataclass(value) and not isinstance(value, type):
        if not getattr(value, "resumable", True):
            raise CheckpointError(
                f"`{where}` of type {type(value).__name__} cannot be resumed (its memory lives outside of Python); "
                "run without --checkpoint"
            )
        return {f.name: _packed_field(f, getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, list | tuple | deque):
        return [pack(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {key: pack(item, f"{where}[{key!r}]") for key, item in value.items()}
    if hasattr(value, "load_state_dict"):
        return {_STATE_DICT: pack(value.state_dict(), where)}
    raise CheckpointError(
        f"`{where}` must be a tensor, number, string, record, list or dict to be saved, got {type(value).__name__}"
    )


def _packed_field(f: Field[Any], value: Any, where: str) -> Any:
    if f.metadata.get("scratch") and isinstance(value, Tensor):
        return {_SCRATCH: [_dtype(value), list(value.shape)]}
    return pack(value, where)


def _restore(template: Any, saved: Any, where: str, hint: Any) -> Any:
    if isinstance(saved, dict) and set(saved) == {_STATUS}:
        name = saved[_STATUS]
        return Status[name] if name in Status.__members__ else _misfit(where, "a status", str(name))
    if is_dataclass(template):
        return _restore_record(template, saved, where)
    if isinstance(template, Tensor):
        return _restore_tensor(template, saved, where)
    if isinstance(template, torch.Generator):
        if not isinstance(saved, dict) or set(saved) != {_GENERATOR}:
            _misfit(where, "the state of a generator", _kind(saved))
        return copy.copy(template).set_state(saved[_GENERATOR])
    if isinstance(template, list | tuple | deque):
        return _restore_items(template, saved, where, hint)
    if isinstance(template, dict):
        if not isinstance(saved, dict) or (template and set(template) != set(saved)):
            _misfit(where, f"a dict of {sorted(map(str, template))}", _kind(saved))
        return {key: _restore(template.get(key), item, f"{where}[{key!r}]", None) for key, item in saved.items()}
    if template is None:
        return _restore_blank(saved, where, hint)
    if hasattr(template, "load_state_dict"):
        if not isinstance(saved, dict) or set(saved) != {_STATE_DICT}:
            _misfit(where, f"the state_dict of {type(template).__name__}", _kind(saved))
        template.load_state_dict(saved[_STATE_DICT])
        return template
    if type(saved) is not type(template) and not (type(template) is float and type(saved) is int):
        _misfit(where, type(template).__name__, _kind(saved))
    return saved


def _restore_record(template: Any, saved: Any, where: str) -> Any:
    names = {f.name for f in fields(template)}
    if not isinstance(saved, dict) or set(saved) != names:
        got = sorted(map(str, saved)) if isinstance(saved, dict) else _kind(saved)
        _misfit(where, f"the fields {sorted(names)} of {type(template).__name__}", got)
    hints = _hints(type(template))
    out = copy.copy(template)
    for f in fields(template):
        place = f"{where}.{f.name}"
        value = _restore(getattr(template, f.name), saved[f.name], place, hints.get(f.name))
        if f.metadata.get("finite") and isinstance(value, Tensor):
            check_finite(value, place)
        if f.name in _COUNTERS and type(value) is int and not 0 <= value < _LARGEST:
            _misfit(place, f"a count in 0..2^{_LARGEST.bit_length() - 1}", value)
        object.__setattr__(out, f.name, value)
    return out


def check_finite(tensor: Tensor, where: str) -> None:
    """Refuse a tensor with an entry that is not finite.

    Parameters
    ----------
    tensor : Tensor
        Numbers of any type.
    where : str
        Its name in the message.

    Raises
    ------
    CheckpointError
        The first such entry.
    """
    if bool(torch.isfinite(tensor.sum())):  # which a single entry that is not finite would spoil
        return
    bad = (~torch.isfinite(tensor.flatten())).nonzero()
    if len(bad):
        entry = int(bad[0])
        raise CheckpointError(
            f"`{where}` must be finite, got {float(tensor.flatten()[entry].real)} at entry {entry}; go on from an "
            "older checkpoint, or start anew without --resume"
        )


def _restore_tensor(template: Tensor, saved: Any, where: str) -> Tensor:
    if isinstance(saved, dict) and set(saved) == {_SCRATCH}:
        return _restore_scratch(saved[_SCRATCH], where, template)
    if not isinstance(saved, Tensor):
        _misfit(where, "a tensor", _kind(saved))
    # An empty tensor is one that the solver allocates when it first needs it.
    if template.numel() > 0 and (saved.dtype != template.dtype or saved.shape != template.shape):
        _misfit(where, _kind(template), _kind(saved))
    return saved.to(template.device, copy=True).requires_grad_(template.requires_grad)


def _restore_scratch(saved: Any, where: str, like: Tensor | None) -> Tensor:
    """Return a buffer like that of the template, or zeros of the kind that was saved where there is none."""
    fits = isinstance(saved, list) and len(saved) == 2 and isinstance(saved[1], list)
    dtype = getattr(torch, str(saved[0]), None) if fits else None
    if not isinstance(dtype, torch.dtype) or not all(type(k) is int and k >= 0 for k in saved[1]):
        _misfit(where, "a buffer", str(saved)[:60])
    if like is None:
        try:
            return torch.zeros(saved[1], dtype=dtype)
        except RuntimeError:  # no memory for it
            _misfit(where, "a buffer that fits into memory", f"shape {tuple(saved[1])}")
    if like.numel() > 0 and (_dtype(like), list(like.shape)) != (saved[0], saved[1]):
        _misfit(where, _kind(like), f"{saved[0]} of shape {tuple(saved[1])}")
    return torch.zeros_like(like)


def _restore_items(template: Any, saved: Any, where: str, hint: Any) -> Any:
    if not isinstance(saved, list) or (template and len(template) != len(saved)):
        _misfit(where, f"{len(template)} items", f"{len(saved)} items" if isinstance(saved, list) else _kind(saved))
    inner = next((a for a in typing.get_args(hint) if a is not Ellipsis), None)
    blanks = template or [None] * len(saved)
    items = [_restore(t, s, f"{where}[{k}]", inner) for k, (t, s) in enumerate(zip(blanks, saved, strict=True))]
    return deque(items, template.maxlen) if isinstance(template, deque) else type(template)(items)


def _restore_blank(saved: Any, where: str, hint: Any) -> Any:
    """Restore what is None in the template: data as it is, a record by the class in its annotation."""
    if isinstance(saved, list):
        inner = next((a for a in typing.get_args(hint) if a is not type(None)), None)
        return [_restore_blank(item, f"{where}[{k}]", inner) for k, item in enumerate(saved)]
    if not isinstance(saved, dict):
        return saved.clone() if isinstance(saved, Tensor) else saved
    if set(saved) == {_SCRATCH}:
        return _restore_scratch(saved[_SCRATCH], where, None)
    if typing.get_origin(hint) is dict:
        return {key: _restore_blank(item, f"{where}[{key!r}]", None) for key, item in saved.items()}
    kind = next((a for a in (hint, *typing.get_args(hint)) if isinstance(a, type) and is_dataclass(a)), None)
    if kind is None:
        return _misfit(where, "nothing (a fresh state has none)", _kind(saved))
    blank = object.__new__(kind)
    for f in fields(kind):
        object.__setattr__(blank, f.name, None)
    return _restore_record(blank, saved, where)


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # a name imported for type checkers only
        return {}


def same(a: Any, b: Any) -> bool:
    """Return whether two trees of plain data are equal, NaN being equal to itself.

    Parameters
    ----------
    a, b : object
        As `pack` returns them.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(type(a) is type(b) and (a == b or a != a))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_dtype(value)} of shape {tuple(value.shape)}"
    return "a record" if isinstance(value, dict) else type(value).__name__


def _misfit(where: str, expected: str, got: Any) -> typing.NoReturn:
    raise CheckpointError(
        f"`{where}` must be {expected}, got {got}; resume with the problem, solver and mldd that wrote the checkpoint"
    )
