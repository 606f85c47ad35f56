"""Keys of the command line: the fields of a dataclass and of its records, as ``radius.initial`` or ``initial``."""

from __future__ import annotations

import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal

from mldd.algebra import registered

SOLVERS: dict[str, str] = registered("mldd.solvers")  # name -> "module:Class"; after "?" fields that the name sets
_SCALARS = (bool, int, float, str)


def fields_of(kind: type) -> tuple[Field[Any], ...]:
    """Return the fields of a dataclass, none of another class.

    Parameters
    ----------
    kind : type
        A dataclass.
    """
    return fields(kind) if is_dataclass(kind) else ()


def default(f: Field[Any]) -> Any:
    """Return the default of a field, ``dataclasses.MISSING`` where it has none.

    Parameters
    ----------
    f : dataclasses.Field
        One of a problem or solver.
    """
    return f.default if f.default_factory is MISSING else f.default_factory()


def keys_of(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass that the command line can set, with their annotations.

    A field that is a record, a dataclass that is no solver with a name, stands for its own fields, with its name in
    front: ``radius.initial``.

    Parameters
    ----------
    kind : type
        A dataclass.
    """
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # a name that is imported for type checkers only
        hints = {f.name: type(f.default) for f in fields_of(kind)}
    keys: dict[str, Any] = {}
    for f in fields_of(kind):
        hint = hints[f.name]
        if not f.init or f.name[0] == "_":
            continue
        if _leaves(hint):
            keys[f.name] = hint
        elif isinstance(hint, type) and is_dataclass(hint) and isinstance(default(f), hint):
            keys |= {f"{f.name}.{key}": inner for key, inner in keys_of(hint).items()}
    return keys


def short(keys: Mapping[str, Any]) -> dict[str, str]:
    """Return, by full name, how a key may be written: without the names of its records where that names one key.

    Parameters
    ----------
    keys : dict
        As `keys_of` returns them.

    Examples
    --------
    >>> short({"seed": int, "network.hidden": int, "first.rate": float, "second.rate": float})
    {'seed': 'seed', 'network.hidden': 'hidden', 'first.rate': 'first.rate', 'second.rate': 'second.rate'}
    """
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: tail if last[tail := key.rpartition(".")[2]] == 1 else key for key in keys}


def full(keys: Mapping[str, Any], key: str) -> str:
    """Return the full name of a key that may be written short; one that is unknown comes back as it is.

    Parameters
    ----------
    keys : dict
        As `keys_of` returns them.
    key : str
        What was written.
    """
    return next((name for name, tail in short(keys).items() if tail == key), key)


def default_of(kind: type, key: str) -> Any:
    """Return the default of a key, ``dataclasses.MISSING`` where it has none.

    Parameters
    ----------
    kind : type
        A dataclass.
    key : str
        A field, or one of a nested record, as in `keys_of`.
    """
    name, _, rest = key.partition(".")
    found = default(next(f for f in fields_of(kind) if f.name == name))
    return attrgetter(rest)(found) if rest else found


def with_nested(written: dict[str, Any], record: Callable[[str], Any]) -> dict[str, Any]:
    """Return values by field; keys of a nested record are changes to what `record` returns for its name.

    Parameters
    ----------
    written : dict
        Values by key.
    record : callable
        Returns the record that is changed, by the name of its field.
    """
    values = {key: value for key, value in written.items() if "." not in key}
    for name in dict.fromkeys(key.partition(".")[0] for key in written if "." in key):
        old = record(name)
        changes = {key.partition(".")[2]: value for key, value in written.items() if key.startswith(f"{name}.")}
        values[name] = replace(old, **with_nested(changes, partial(getattr, old)))
    return values


def _leaves(hint: Any) -> bool:
    """Say whether a value of this annotation can be written on the command line."""
    if hint in _SCALARS or typing.get_origin(hint) is Literal or holds_solver(hint):
        return True
    origin, inner = typing.get_origin(hint), [a for a in typing.get_args(hint) if a not in (type(None), Ellipsis)]
    return origin in (tuple, typing.Union, types.UnionType) and bool(inner) and all(map(_leaves, inner))


def is_solver(value: Any) -> bool:
    """Return whether the value of a field is a solver.

    Parameters
    ----------
    value : object
        Of a field.
    """
    return is_dataclass(value) and not isinstance(value, type) and hasattr(value, "init") and hasattr(value, "step")


def holds_solver(hint: Any) -> bool:
    """Return whether the annotation is that of a nested solver: ``Solver``, ``Solver | None``, or one with a name.

    Parameters
    ----------
    hint : type
        Annotation of a field.
    """
    from mldd.loop import Solver

    return hint is Solver or Solver in typing.get_args(hint) or solver_wanted(hint) != ""


def solver_wanted(hint: Any) -> str:
    """Return the name of the one kind of solver that a field takes, "" where it takes any solver or none.

    Parameters
    ----------
    hint : type
        Annotation of a field.
    """
    if not isinstance(hint, type):
        return ""
    home = f"{hint.__module__}:{hint.__qualname__}"
    return next((name for name, target in SOLVERS.items() if target == home), "")
