"""Checkpoints: iterate, full state of the solver, history and random state, in a file that holds data only.

A solver's state is a tree of dataclasses. Written is a tree of dicts and lists with tensors, numbers and strings as
leaves, so that reading never runs code of the file (``torch.load(weights_only=True)``). Classes come from a *template*:
the state that ``solver.init`` of the same solver makes, into which `restore` fills what was saved.
"""

from __future__ import annotations

import copy
import pickle
import re
import typing
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.loop.monitor import FIELDS, History, Record, replacing
from mldd.loop.status import Status
from mldd.loop.validation import Validation
from mldd.ranks import SERIAL, Communicator

FORMAT = "mldd checkpoint 3"
_STATUS, _GENERATOR, _STATE_DICT = "!status", "!generator", "!state_dict"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used for this run."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    x : Tensor, shape (n,)
        The iterate.
    states : list of dict
        The solver's state: one for all ranks, or one per rank where ranks hold different ones.
    history : History
        Records up to there.
    meta : dict
        Problem, solver, options, seed, version: what has to be the same for the run to go on.
    random : dict
        State of torch's and NumPy's global generators.
    validation : dict
        What `Validation.state` has returned; empty where the run had none.
    """

    x: Tensor
    states: list[dict[str, Any]]
    history: History
    meta: dict[str, Any]
    random: dict[str, Any]
    validation: dict[str, Any]

    def check(self, meta: dict[str, Any]) -> None:
        """Refuse to go on with another run than the one described by `meta` (its version may differ).

        Parameters
        ----------
        meta : dict
            What has to be the same, of the run that is to go on.

        Raises
        ------
        CheckpointError
            First entry that differs.
        """
        for key, expected in pack(meta, "meta").items():
            if key != "mldd" and not _same(self.meta.get(key), expected):
                raise CheckpointError(
                    f"the checkpoint must be one of the same run, with {key} {expected}, got one with "
                    f"{self.meta.get(key)}; give the same {key}, or start anew without --resume"
                )

    def state(self, template: Any, comm: Communicator = SERIAL) -> Any:
        """Return this rank's state, filled into `template`.

        Parameters
        ----------
        template : State
            A fresh one of the same solver.
        comm : Communicator
            The ranks, each of which gets its own.

        Raises
        ------
        CheckpointError
            Ranks held different states and there are more or fewer ranks now, or a field does not fit.
        """
        if len(self.states) not in (1, comm.ranks):
            raise CheckpointError(
                f"the checkpoint holds the subdomains of {len(self.states)} ranks, got {comm.ranks}; "
                f"resume with mpiexec -n {len(self.states)}"
            )
        return restore(template, self.states[comm.rank if len(self.states) > 1 else 0])

    def restore_random(self) -> None:
        """Set torch's and NumPy's global generators to what they were."""
        if "torch" in self.random:
            torch.set_rng_state(self.random["torch"])
        if "numpy" in self.random:
            name, keys, *rest = self.random["numpy"]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def save(
    path: Path | str,
    *,
    x: Tensor,
    state: Any,
    history: History,
    meta: dict[str, Any],
    comm: Communicator = SERIAL,
    validation: Validation | None = None,
) -> None:
    """Write a checkpoint whole or not at all. Called by all ranks; rank 0 writes.

    Parameters
    ----------
    path : Path or str
        Of the file.
    x : Tensor, shape (n,)
        The iterate.
    state : State
        Of the solver, on this rank.
    history : History
        All records so far.
    meta : dict
        What has to be the same for the checkpoint to be of a run.
    comm : Communicator
        The ranks.
    validation : Validation, optional
        That of the run.

    Raises
    ------
    CheckpointError
        The state says ``resumable = False``, or holds something else than data.
    OSError
        The file cannot be written; an older one of this name is kept.
    """
    states = comm.gather_items(pack(state, "state"))
    if comm.rank != 0:
        return
    if all(_same(states[0], other) for other in states[1:]):
        states = states[:1]
    content = {
        "format": FORMAT,
        "x": pack(x, "x"),
        "states": states,
        "history": {name: _column(history.column(name)) for name in FIELDS},
        "validated": {k: dict(record.validation) for k, record in enumerate(history.records) if record.validation},
        "validation": {} if validation is None else pack(validation.state(), "validation"),
        "meta": pack(meta, "meta"),
        "random": _random_state(),
    }
    with replacing(Path(path)) as new, open(new, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides that the disk is full behind its own complaint
                raise error.__context__ from None
            raise


def load(path: Path | str) -> Checkpoint:
    """Return the checkpoint in a file, on the CPU. Nothing in the file is run.

    Parameters
    ----------
    path : Path or str
        Of the file.

    Raises
    ------
    CheckpointError
        Not a checkpoint of mldd: truncated, foreign or malicious.
    FileNotFoundError
        No such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} must be a file, got none; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may raise anything
        raise CheckpointError(
            f"{path} must be a whole checkpoint of mldd, but it cannot be read ({unreadable(error)}); "
            "give another one, or start anew without --resume"
        ) from error
    try:
        return _unpack(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} must be a checkpoint written by mldd, got another file ({error})") from error


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
        From `Checkpoint.states`.

    Raises
    ------
    CheckpointError
        A field is missing, unknown, or of another kind, shape or dtype.
    """
    return _restore(template, saved, "state", type(template))


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


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    numbers = [v.item() if isinstance(v, np.generic) else v for v in rest]
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *numbers],
    }


def _column(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64 if any(isinstance(v, float) for v in values) else torch.int64)


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
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)  # a view would drag its storage along
    if isinstance(value, torch.Generator):
        return {_GENERATOR: value.get_state()}
    if is_dataclass(value) and not isinstance(value, type):
        if not getattr(value, "resumable", True):
            raise CheckpointError(
                f"`{where}` of type {type(value).__name__} cannot be resumed (its memory lives outside of Python); "
                "run without --checkpoint"
            )
        return {f.name: pack(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, list | tuple | deque):
        return [pack(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {key: pack(item, f"{where}[{key!r}]") for key, item in value.items()}
    if hasattr(value, "load_state_dict"):
        return {_STATE_DICT: pack(value.state_dict(), where)}
    raise CheckpointError(
        f"`{where}` must be a tensor, number, string, record, list or dict to be saved, got {type(value).__name__}"
    )


def _unpack(content: Any) -> Checkpoint:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it does not say {FORMAT!r}")
    x, states, meta, random, last = (content[key] for key in ("x", "states", "meta", "random", "validation"))
    if not (isinstance(x, Tensor) and all(isinstance(part, dict) for part in (meta, random, last))):
        raise TypeError("a part has the wrong type")
    if not states or not all(isinstance(state, dict) for state in states):
        raise TypeError("it has no state of a solver")
    columns = [content["history"][name].tolist() for name in FIELDS]
    rows, validated = zip(*columns, strict=True), content["validated"]
    history = History([Record.of(row, validated.get(k)) for k, row in enumerate(rows)])
    return Checkpoint(x, list(states), history, meta, random, last)


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
    for name in names:
        value = _restore(getattr(template, name), saved[name], f"{where}.{name}", hints.get(name))
        object.__setattr__(out, name, value)
    return out


def _restore_tensor(template: Tensor, saved: Any, where: str) -> Tensor:
    if not isinstance(saved, Tensor):
        _misfit(where, "a tensor", _kind(saved))
    # An empty tensor is one that the solver allocates when it first needs it.
    if template.numel() > 0 and (saved.dtype != template.dtype or saved.shape != template.shape):
        _misfit(where, _kind(template), _kind(saved))
    return saved.to(template.device, copy=True).requires_grad_(template.requires_grad)


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


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(type(a) is type(b) and (a == b or a != a))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}".removeprefix("torch.")
    return "a record" if isinstance(value, dict) else type(value).__name__


def _misfit(where: str, expected: str, got: Any) -> typing.NoReturn:
    raise CheckpointError(
        f"`{where}` must be {expected}, got {got}; resume with the problem, solver and mldd that wrote the checkpoint"
    )
