"""Named parameters of a module in groups: parts of an encode-process-decode model, its blocks, or patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from torch import nn

Groups = Mapping[str, str] | Literal["parts", "blocks"]
Regroup = Callable[[list[nn.Parameter]], list[dict[str, Any]]]
REST = "rest"
_PARTS = ("encoder", "processor", "decoder")
# How `optimizer` gets the groups of a callback: a framework calls it with parameters that have lost their names.
_regroup: ContextVar[Regroup | None] = ContextVar("mldd_groups", default=None)
_watched: ContextVar[bool] = ContextVar("mldd_watched", default=False)


def check_groups(groups: Any) -> None:
    """Refuse what names no groups.

    Parameters
    ----------
    groups : dict of str to str, "parts" or "blocks"
        As `labels` takes it.

    Raises
    ------
    ValueError
        Another word, no pattern, or one that is no regular expression.
    """
    if groups in ("parts", "blocks"):
        return
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"`groups` must be parts, blocks, or patterns by name ({{ends: 'encoder'}}), got {groups!r}")
    for name, pattern in groups.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"`groups` must be regular expressions, got {pattern!r} for {name} ({error})") from None


def labels(names: Iterable[str], groups: Groups) -> list[str]:
    """Return the group of every parameter.

    Parameters
    ----------
    names : iterable of str
        Of parameters, with dots.
    groups : dict of str to str, "parts" or "blocks"
        Patterns by name, the first one that is found in a name counts; or encoder, processor and decoder by the word
        that a component of the name begins with; or these with every numbered block of the processor alone. What fits
        nowhere is in the group ``rest``.
    """
    of = _block if groups == "blocks" else _part if groups == "parts" else _pattern(dict(groups))
    return [of(name) for name in names]


def _part(name: str) -> str:
    return next((part for word in name.split(".") for part in _PARTS if word.startswith(part)), REST)


def _block(name: str) -> str:
    part, words = _part(name), name.split(".")
    first = next((k for k, word in enumerate(words) if word.startswith("processor")), len(words))
    number = next((word for word in words[first:] if word.isdecimal()), None)
    return f"{part} {number}" if part == "processor" and number is not None else part


def _pattern(patterns: Mapping[str, str]) -> Callable[[str], str]:
    return lambda name: next((label for label, pattern in patterns.items() if re.search(pattern, name)), REST)


def grouped(named: Mapping[str, nn.Parameter], groups: Groups) -> list[dict[str, Any]]:
    """Return groups of parameters as torch's optimizers take them, each with its name.

    Parameters
    ----------
    named : dict of str to Parameter
        Those that are trained.
    groups : dict of str to str, "parts" or "blocks"
        As in `labels`.

    Raises
    ------
    ValueError
        A pattern that finds no parameter, or one group only.
    """
    found: dict[str, list[nn.Parameter]] = {}
    for label, parameter in zip(labels(named, groups), named.values(), strict=True):
        found.setdefault(label, []).append(parameter)
    bare = [name for name in (() if isinstance(groups, str) else groups) if name not in found]
    some = ", ".join(list(named)[:3])
    if bare:
        raise ValueError(
            f"every pattern of `groups` must find a parameter that no earlier one finds, got none for "
            f"{', '.join(bare)}; parameters are named {some}, ..."
        )
    if len(found) < 2:
        raise ValueError(
            f"`groups` must make two groups of parameters at least, got {', '.join(found) or 'none'} alone of "
            f"{groups}; give patterns by name, parameters are named {some}, ..."
        )
    rest = [label for label in found if label == REST]
    return [{"name": label, "params": found[label]} for label in [*(k for k in found if k != REST), *rest]]


@contextmanager
def regrouping(regroup: Regroup | None) -> Iterator[None]:
    """Yield while `optimizer`, called inside, groups its parameters by a function.

    Parameters
    ----------
    regroup : callable or None
        Takes the parameters; None leaves them as they are.

    Yields
    ------
    None
        To make optimizers.
    """
    tokens = _regroup.set(regroup or _regroup.get()), _watched.set(True)
    try:
        yield
    finally:
        _regroup.reset(tokens[0])
        _watched.reset(tokens[1])


def current_regroup() -> Regroup | None:
    """Return the function of the callback inside of which optimizers are made, None where there is none."""
    return _regroup.get()


def is_watched() -> bool:
    """Return whether a callback of mldd is around, which has looked at the settings of the trainer."""
    return _watched.get()
