"""Names of the command line and the objects behind them: the one place where strings become problems and solvers."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from mldd.algebra import did_you_mean, from_outside, loaded, registered
from mldd.command.values import convert, split

# Name -> "module:Class"; what follows "?" are fields that the name itself sets.
PROBLEMS: dict[str, str] = registered("mldd.problems")
SOLVERS: dict[str, str] = registered("mldd.solvers")
USER_FILE = "mldd.problems.graphs.node_classification:NodeClassification?name="
SHARDS = "mldd.problems.graphs.sharded:ShardedClassification?folder="  # a folder with this file
MANIFEST = "manifest.json"
SERIES_FILE = "mldd.problems.forecasts.forecasting:Forecasting?name="
FORMATS: dict[str, str] = registered("mldd.problems.data.formats")  # suffix -> "module:function", a reader of files
_HOLDS = "mldd.problems.data.formats.choice:holds"  # says whether a file is a graph or a series
FIRST = {"tao": "type", "snes": "type"}  # the key of a value without one: tao:blmvm
NEEDS = {"tao": ("petsc4py", "greenlet"), "snes": ("petsc4py", "greenlet")}
# Solvers by the name of a PETSc option: -tao_python_type mldd.solvers.petsc.petsc_types.ml_adagrad
PYTHON_TYPES = "mldd.solvers.petsc.petsc_types."
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Spec:
    """``NAME:key=value,...`` of the command line, read.

    Attributes
    ----------
    text : str
        As it was given.
    name : str
        The name without keys.
    kind : type
        The dataclass behind the name.
    keys : dict
        Fields that the user set; the value of a field that is a solver is its `Spec`. The fields of a nested record
        have its name in front: ``radius.initial``.
    fixed : dict
        Fields that the name sets.
    """

    text: str
    name: str
    kind: type
    keys: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def tree(self) -> Iterator[Spec]:
        """Itself and all that are nested in it."""
        yield self
        for value in self.keys.values():
            if isinstance(value, Spec):
                yield from value.tree

    def has(self, name: str) -> bool:
        """Return whether the dataclass has the field `name`.

        Parameters
        ----------
        name : str
            Of a field.
        """
        return any(f.name == name for f in fields_of(self.kind))

    def make(self, **given: Any) -> Any:
        """Return the object, with those of `given` that it has fields for; what the user wrote comes first.

        Solvers that are nested in it have to be in `given`: only who builds them knows what they need.

        Parameters
        ----------
        given : object
            Values by the names of fields; those of a nested record or solver have its name in front: ``coarse.steps``.

        Raises
        ------
        ValueError
            A field without a default was not set.
        """
        written = {key: value for key, value in self.keys.items() if not isinstance(value, Spec)}
        defaults = {f.name: default(f) for f in fields_of(self.kind)}
        known = {k: v for k, v in given.items() if self.has(k.partition(".")[0])} | self.fixed
        values = _with_nested(known, lambda name: known.get(name, defaults[name]))
        values |= _with_nested(written, lambda name: values.get(name, defaults[name]))
        missing = [f.name for f in fields_of(self.kind) if f.init and default(f) is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"{self.text} needs `{missing[0]}`; write {self.name}:{missing[0]}=VALUE")
        return self.kind(**values)


def problem_spec(text: str) -> Spec:
    """Return what a PROBLEM says: a name, a file with a graph or a time series, or a class of the user's, with keys.

    Parameters
    ----------
    text : str
        As it was given.

    Raises
    ------
    ValueError
        Unknown name or key, or a value of the wrong kind.
    FileNotFoundError
        No such file.
    """
    file = _file(text) if text.partition(":")[0] not in PROBLEMS else None
    if file is not None:
        return _of_file(text, *file)
    outside = from_outside(text, PROBLEMS)
    if outside is not None:
        return _spec(text, outside, text[len(outside) + 1 :], outside, None, complete=True)
    name, _, rest = text.partition(":")
    if name not in PROBLEMS and os.path.isfile(os.path.join(name, MANIFEST)):
        return _spec(text, name, rest, SHARDS + name, None)
    return _spec(text, name, rest, _look_up(name, PROBLEMS, "problem"), None)


def check_solver(text: str) -> None:
    """Refuse an unknown solver before anything is imported for the problem.

    Parameters
    ----------
    text : str
        A SOLVER of the command line.

    Raises
    ------
    ValueError
    """
    if from_outside(text, SOLVERS) is None:
        _look_up(re.split("[:(]", text, maxsplit=1)[0], SOLVERS, "solver")


def _file(text: str) -> tuple[str, str] | None:
    """Return path and keys of a file that has a reader, by its suffix or by a key; None where the text names none.

    A path may have colons: the longest one that exists counts.
    """
    missing = None
    for colon in (len(text), *(k for k in reversed(range(len(text))) if text[k] == ":")):
        head, rest = text[:colon], text[colon + 1 :]
        path = Path(head).expanduser() if head.startswith("~") else Path(head)
        suffix = path.suffix.lower().lstrip(".")
        if suffix in FORMATS or _reader(rest):
            if path.is_file() or (path.is_dir() and suffix in ("zarr", "")):
                return head, rest
            missing = head, rest
    return missing


def _reader(rest: str) -> str:
    """Return the value of the key `reader`, empty where there is none."""
    found = re.search(r"(?:^|,)reader=([^,]+)", rest)
    return found[1] if found else ""


def _of_file(text: str, head: str, rest: str) -> Spec:
    """Read a PROBLEM that is a file: what its reader returns says whether it is a graph or a time series."""
    path = Path(head).expanduser() if head.startswith("~") else Path(head)
    if not path.exists():
        raise FileNotFoundError(f"the problem {head} must be a file, got none; check the path")
    kind = loaded(_HOLDS, "function")(head, _reader(rest))
    return _spec(text, head, rest, (SERIES_FILE if kind == "series" else USER_FILE) + head, None)


def solver_spec(text: str) -> Spec:
    """Return what a SOLVER says: a name with keys, as in ``lbfgs:memory=5`` or ``lbfgs(memory=5)``.

    Parameters
    ----------
    text : str
        As it was given.

    Raises
    ------
    ValueError
        Unknown name or key, a value of the wrong kind, or a parenthesis without its partner.
    """
    outside = from_outside(text, SOLVERS)
    name = re.split("[:(]", text, maxsplit=1)[0] if outside is None else outside
    rest = text[len(name) + 1 :]
    if text[len(name) :].startswith("("):
        if not text.endswith(")"):
            raise ValueError(
                f"the keys of {name} must end with their parenthesis, got {text!r}; write {name}(key=value)"
            )
        rest = rest[:-1]
    if outside is not None:
        return _spec(text, name, rest, outside, None)
    return _spec(text, name, rest, _look_up(name, SOLVERS, "solver"), FIRST.get(name))


def python_specs(options: Sequence[str]) -> list[Spec]:
    """Return the solvers that PETSc options name: ``-npc_snes_python_type mldd.solvers.petsc.petsc_types.schwarz``.

    Parameters
    ----------
    options : sequence of str
        One-dash options of the command line.
    """
    pairs = zip(options, options[1:], strict=False)
    named = [value for option, value in pairs if option.endswith("_python_type") and value.startswith(PYTHON_TYPES)]
    return [solver_spec(value.removeprefix(PYTHON_TYPES).replace("_", "-")) for value in named]


def name_of(thing: Any) -> str:
    """Return the solver's name on the command line, that of its class where it has none.

    Parameters
    ----------
    thing : type or object
        A class or an instance of it.
    """
    home = f"{type(thing).__module__}:{type(thing).__qualname__}"
    for name, target in SOLVERS.items():
        known, _, preset = target.partition("?")
        key, _, value = preset.partition("=")
        if known == home and (not preset or str(getattr(thing, key)) == value):
            return name
    return type(thing).__name__


def described(thing: Any, name: str = "", known: Mapping[str, str] | None = None) -> str:
    """Return name and all keys of a problem or solver, defaults too, and of what is nested in it.

    Parameters
    ----------
    thing : Problem or Solver
        Which one.
    name : str
        On the command line.
    known : dict of str, optional
        Texts of some keys, in the place of their values.
    """
    texts = known or {}
    listed = ",".join(
        f"{key}={texts[key] if key in texts else _value_text(attrgetter(key)(thing))}" for key in keys_of(type(thing))
    )
    return f"{name}:{listed}" if name else f"{name_of(thing)}({listed})"


def _value_text(value: Any) -> str:
    return described(value) if is_solver(value) else str(value)


def is_solver(value: Any) -> bool:
    """Return whether the value of a field is a solver.

    Parameters
    ----------
    value : object
        Of a field.
    """
    return is_dataclass(value) and not isinstance(value, type) and hasattr(value, "init") and hasattr(value, "step")


def split_specs(text: str) -> list[str]:
    """Return the specs of ``A:key=1,key=2,B``: what looks like ``key=value`` goes on with the spec before it.

    Parameters
    ----------
    text : str
        Of the option --solvers.

    Examples
    --------
    >>> split_specs("adam:rate=0.1,beta=0.9,tao:blmvm,lbfgs")
    ['adam:rate=0.1,beta=0.9', 'tao:blmvm', 'lbfgs']
    """
    specs: list[str] = []
    for piece in split(text):
        key, equals, _ = piece.partition("=")
        if equals and not {":", "("} & set(key) and specs:
            specs[-1] += ("," if ":" in specs[-1] else ":") + piece
        else:
            specs.append(piece)
    return specs


def exists(target: str) -> bool:
    """Return whether the module of a target is there, without importing it.

    Parameters
    ----------
    target : str
        ``module:Class``.
    """
    return find_spec(target.partition(":")[0]) is not None


def _look_up(name: str, table: dict[str, str], what: str) -> str:
    if name not in table or not exists(table[name]):
        there = [n for n, target in table.items() if exists(target)]
        file = f", or a file .{' .'.join(FORMATS)}, or a folder with {MANIFEST}" if what == "problem" else ""
        raise ValueError(
            f"unknown {what} {name!r}{did_you_mean(name, there)}; there are {' '.join(there)}{file}, or file.py:Class"
        )
    return table[name]


def fields_of(kind: type) -> tuple[Field[Any], ...]:
    """Return the fields of a dataclass, none of another class.

    Parameters
    ----------
    kind : type
        A dataclass.
    """
    return fields(kind) if is_dataclass(kind) else ()


def _spec(text: str, name: str, rest: str, target: str, first: str | None, *, complete: bool = False) -> Spec:
    home, _, preset = target.partition("?")
    kind = loaded(home, "class")
    if complete:
        from mldd.loop import completed

        kind = completed(kind)
    fixed = dict([preset.split("=", 1)]) if preset else {}
    hints = {key: hint for key, hint in keys_of(kind).items() if key not in fixed}
    keys: dict[str, Any] = {}
    for k, item in enumerate(split(rest) if rest else []):
        key, equals, value = item.partition("=")
        if not equals and k == 0 and first is not None:
            key, value, equals = first, item, "="
        if not equals:
            raise ValueError(f"{name} takes key=value, got {item!r}; its keys are {' '.join(hints) or 'none'}")
        if key not in hints:
            raise ValueError(
                f"{name} has no key {key!r}{did_you_mean(key, list(hints))}; its keys are {' '.join(hints) or 'none'}"
            )
        read = _nested if holds_solver(hints[key]) else convert
        keys[key] = read(value, hints[key], f"{name}:{key}")
    return Spec(text, name, kind, keys, fixed)


def _nested(value: str, hint: Any, what: str) -> Spec | None:
    """Read the solver in a field; `what` names the field where it is refused."""
    if value.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    try:
        spec = solver_spec(value)
    except ValueError as error:
        raise ValueError(f"`{what}`: {error}") from None
    wanted = solver_wanted(hint)
    if wanted and not issubclass(spec.kind, hint):
        raise ValueError(f"`{what}` must be {wanted}, got {value!r}; write {wanted} or {wanted}(key=value)")
    return spec


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


def _with_nested(written: dict[str, Any], record: Callable[[str], Any]) -> dict[str, Any]:
    """Return values by field; keys of a nested record are changes to what `record` returns for its name."""
    values = {key: value for key, value in written.items() if "." not in key}
    for name in dict.fromkeys(key.partition(".")[0] for key in written if "." in key):
        old = record(name)
        changes = {key.partition(".")[2]: value for key, value in written.items() if key.startswith(f"{name}.")}
        values[name] = replace(old, **_with_nested(changes, partial(getattr, old)))
    return values


def _leaves(hint: Any) -> bool:
    """Say whether a value of this annotation can be written on the command line."""
    if hint in _SCALARS or typing.get_origin(hint) is Literal or holds_solver(hint):
        return True
    origin, inner = typing.get_origin(hint), [a for a in typing.get_args(hint) if a not in (type(None), Ellipsis)]
    return origin in (tuple, typing.Union, types.UnionType) and bool(inner) and all(map(_leaves, inner))


def default(f: Field[Any]) -> Any:
    """Return the default of a field, ``dataclasses.MISSING`` where it has none.

    Parameters
    ----------
    f : dataclasses.Field
        One of a problem or solver.
    """
    return f.default if f.default_factory is MISSING else f.default_factory()
