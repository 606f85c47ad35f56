"""Names of the command line and the objects behind them: the one place where strings become problems and solvers."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from glob import glob, has_magic
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mldd.algebra import did_you_mean, from_outside, loaded, registered
from mldd.command.keys import (
    SOLVERS,
    default,
    fields_of,
    full,
    holds_solver,
    is_solver,
    keys_of,
    short,
    solver_wanted,
    with_nested,
)
from mldd.command.values import convert, split, with_metric

if TYPE_CHECKING:
    from mldd.loop import Problem

# Name -> "module:Class"; what follows "?" are fields that the name itself sets.
PROBLEMS: dict[str, str] = registered("mldd.problems")
USER_FILE = "mldd.problems.graphs.node_classification:NodeClassification?name="
SHARDS = "mldd.problems.graphs.sharded:ShardedClassification?folder="  # a folder with this file
MANIFEST = "manifest.json"
SERIES_FILE = "mldd.problems.forecasts.forecasting:Forecasting?name="
NETWORK = "mldd.problems.modules.user_network:kind_of"  # the problem around a class of networks
FORMATS: dict[str, str] = registered("mldd.problems.data.formats")  # suffix -> "module:function", a reader of files
_HOLDS = "mldd.problems.data.formats.choice:holds"  # says whether a file is a graph or a series
FIRST = {"tao": "type", "snes": "type"}  # the key of a value without one: tao:blmvm
NEEDS = {"tao": ("petsc4py", "greenlet"), "snes": ("petsc4py", "greenlet")}
PLACES = ("name", "path", "folder", "data", "reader", "reading.reader")  # keys that say where data are, not what
# Solvers by the name of a PETSc option: -tao_python_type mldd.solvers.petsc.petsc_types.ml_adagrad
PYTHON_TYPES = "mldd.solvers.petsc.petsc_types."


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
        values = with_nested(known, lambda name: known.get(name, defaults[name]))
        values |= with_nested(written, lambda name: values.get(name, defaults[name]))
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
    network = network_spec(text)
    if network is not None:
        return network
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


def network_spec(text: str) -> Spec | None:
    """Return what a PROBLEM says whose model is a class of networks of the user's; None for all others.

    Parameters
    ----------
    text : str
        As it was given.
    """
    found = re.search(r"(?:^|[:,])(model=([^,=]*\.py:\w+|[A-Za-z_][\w.]*:\w+))(?=,|$)", text)
    if found is None:
        return None
    kind = loaded(found[2], "class")
    from torch import nn

    if not issubclass(kind, nn.Module):
        return None
    name, _, rest = text.partition(":")
    if name not in PROBLEMS:
        name, rest = _file(text) or (name, rest)
    kept = ",".join(item for item in split(rest) if item != found[1])
    made = loaded(NETWORK, "function")(kind)
    return _read(text, name, kept, made, {"name": name, "model": found[2]}, None)


def problem(what: str | type[Problem], **values: Any) -> Problem:
    """Return a problem by name, file or class, with keys as the command line has them.

    Parameters
    ----------
    what : str or type
        A PROBLEM of the command line, with or without keys, or a class of problems.
    **values : object
        Values of fields; those of a record may be given by their own name where no other key ends so.

    Raises
    ------
    ValueError
        An unknown name or key, or a value that the problem refuses.

    Examples
    --------
    >>> problem("obstacle:n=31", dtype="float32")
    Obstacle(n=31, dtype='float32', device='cpu', load=10.0, lower=-0.25)
    """
    spec = problem_spec(what) if isinstance(what, str) else Spec(what.__name__, what.__name__, what)
    hints = keys_of(spec.kind)
    given = {key if spec.has(key) else known(hints, key, spec.name): value for key, value in values.items()}
    made: Problem = spec.make(**given)
    return made


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
            if path.is_file() or (path.is_dir() and suffix in ("zarr", "")) or _are_files(path):
                return head, rest
            missing = head, rest
    return missing


def _are_files(path: Path) -> bool:
    """Return whether a path is a pattern of files, as ``months/era5_*.nc``."""
    return has_magic(str(path)) and bool(glob(str(path)))


def _reader(rest: str) -> str:
    """Return the value of the key `reader`, empty where there is none."""
    found = re.search(r"(?:^|,)reader=([^,]+)", rest)
    return found[1] if found else ""


def _of_file(text: str, head: str, rest: str) -> Spec:
    """Read a PROBLEM that is a file: what its reader returns says whether it is a graph or a time series."""
    path = Path(head).expanduser() if head.startswith("~") else Path(head)
    if not path.exists() and not _are_files(path):
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
    target = outside or _look_up(name, SOLVERS, "solver")
    name, rest = with_metric(name, rest)
    return _spec(text, name, rest, SOLVERS.get(name, target), FIRST.get(name))


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
    if name.endswith(".py"):
        raise ValueError(f"{what} {name} must say which class of the file it is, got none; write {name}:Class")
    if name not in table or not exists(table[name]):
        there = [n for n, target in table.items() if exists(target)]
        file = f", or a file .{' .'.join(FORMATS)}, or a folder with {MANIFEST}" if what == "problem" else ""
        raise ValueError(
            f"unknown {what} {name!r}{did_you_mean(name, there)}; there are {' '.join(there)}{file}, or file.py:Class"
        )
    return table[name]


def _spec(text: str, name: str, rest: str, target: str, first: str | None, *, complete: bool = False) -> Spec:
    home, _, preset = target.partition("?")
    kind = loaded(home, "class")
    if complete:
        from mldd.loop import completed

        kind = completed(kind)
    return _read(text, name, rest, kind, dict([preset.split("=", 1)]) if preset else {}, first)


def _read(text: str, name: str, rest: str, kind: type, fixed: dict[str, Any], first: str | None) -> Spec:
    """Read the keys of a class."""
    hints = {key: hint for key, hint in keys_of(kind).items() if key not in fixed}
    keys: dict[str, Any] = {}
    for k, item in enumerate(split(rest) if rest else []):
        key, equals, value = item.partition("=")
        if not equals and k == 0 and first is not None:
            key, value, equals = first, item, "="
        if not equals:
            raise ValueError(f"{name} takes key=value, got {item!r}; its keys are {_listed(hints)}")
        which = known(hints, key, name)
        if which in keys:
            raise ValueError(f"{name}: every key may be given once, got {key} twice; leave one out")
        read = _nested if holds_solver(hints[which]) else convert
        keys[which] = read(value, hints[which], f"{name}:{key}")
    return Spec(text, name, kind, keys, fixed)


def known(hints: Mapping[str, Any], key: str, name: str) -> str:
    """Return the full name of a key, as in `mldd.command.keys.full`.

    Parameters
    ----------
    hints : dict
        Annotations by key.
    key : str
        As it was written.
    name : str
        Whose key it is.

    Raises
    ------
    ValueError
        There is no such key, or several that end with it.
    """
    which = full(hints, key)
    if which in hints:
        return which
    alike = [other for other in hints if other.endswith(f".{key}")]
    if alike:
        raise ValueError(f"{name} has several keys {key!r}; write {' or '.join(alike)}")
    near = did_you_mean(key, [*short(hints).values(), *hints])
    raise ValueError(f"{name} has no key {key!r}{near}; its keys are {_listed(hints)}")


def _listed(hints: Mapping[str, Any]) -> str:
    return " ".join(hints) or "none"


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
