"""Text of the command line: cut at commas, turned into the values of fields, and what is said of an error."""

from __future__ import annotations

import argparse
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal

_LONGEST = 1200  # letters of a message: the list of all problems or keys fits
_DEEPEST = 16  # solvers in solvers
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def split(text: str) -> list[str]:
    """Return the pieces between the commas outside of parentheses.

    Parameters
    ----------
    text : str
        Of keys.

    Raises
    ------
    ValueError
        A parenthesis without its partner, or too many in each other.

    Examples
    --------
    >>> split("local=lbfgs(memory=5,rate=1),combine=ras")
    ['local=lbfgs(memory=5,rate=1)', 'combine=ras']
    """
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
        if depth < 0:
            break
        if depth > _DEEPEST:
            raise ValueError(f"parentheses may be nested {_DEEPEST} deep, got more in {text[:60]!r}...; write fewer")
    if depth != 0:
        raise ValueError(f"every parenthesis must have its partner, got {text!r}; write NAME(key=value,key=value)")
    return pieces


def with_metric(name: str, rest: str) -> tuple[str, str]:
    """Return name and keys of a solver, of that around it where its keys have ``metric``.

    Parameters
    ----------
    name, rest : str
        The name of a solver, and its keys.

    Examples
    --------
    >>> with_metric("lbfgs", "metric=inputs,memory=5,rank=32")
    ('whitened', 'metric=inputs,rank=32,solver=lbfgs(memory=5)')
    """
    items = split(rest)
    of_metric = [item for item in items if item.partition("=")[0] in ("metric", "rank")]
    if name == "whitened" or not any(item.startswith("metric=") for item in of_metric):
        return name, rest
    own = ",".join(item for item in items if item not in of_metric)
    return "whitened", ",".join([*of_metric, f"solver={name}({own})" if own else f"solver={name}"])


def convert(value: str, hint: Any, what: str) -> Any:
    """Return what the annotation `hint` asks for, made of the text of a value.

    Parameters
    ----------
    value : str
        What the user wrote.
    hint : type
        Annotation of the field.
    what : str
        Name of the key, for the message.

    Raises
    ------
    ValueError
        It cannot be one.

    Examples
    --------
    >>> convert("64:32", tuple[int, ...], "digits:hidden")
    (64, 32)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value.lower() == "none" and type(None) in inner:
            return None
        return _first_that_fits(value, [a for a in inner if a is not type(None)], what)
    if origin is tuple:
        return tuple(convert(item, inner[0], what) for item in value.split(":"))
    if origin is Literal:
        match = next((choice for choice in inner if str(choice) == value), MISSING)
        if match is not MISSING:
            return match
        raise ValueError(f"`{what}` must be one of {' '.join(map(str, inner))}, got {value!r}")
    try:
        made = _WORDS[value.lower()] if hint is bool else hint(value)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, str(hint))
        raise ValueError(f"`{what}` must be {kind}, got {value!r}") from None
    if hint is int and not -(2**63) <= made < 2**63:
        raise ValueError(f"`{what}` must be a whole number of at most 64 bits, got {value!r}")
    return check_seed(made, f"`{what}`") if hint is int and re.search(r"[:.]seed$", what) else made


@dataclass(frozen=True)
class AtLeast:
    """What reads a whole number that may not be too small.

    Parameters
    ----------
    least : int
        The smallest one that is allowed.
    """

    least: int

    def __call__(self, text: str) -> int:
        """Return the number in a text.

        Parameters
        ----------
        text : str
            Its digits.

        Raises
        ------
        ArgumentTypeError
            No whole number, or one that is too small.
        """
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < self.least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {self.least}, got {text!r}")
        return int(text)


def check_seed(value: int, what: str, error: type[Exception] = ValueError) -> int:
    """Return a seed that every generator takes, also where others are made of it.

    Parameters
    ----------
    value : int
        The seed.
    what : str
        Name of the key, for the message.
    error : type
        Of the exception.

    Raises
    ------
    ValueError
        It is too large or negative: generators of NumPy and torch have different limits.
    """
    if not 0 <= value < 2**32:
        raise error(f"{what} must be in 0..{2**32 - 1}, got {value}")
    return value


def _first_that_fits(value: str, hints: list[Any], what: str) -> Any:
    for hint in hints[:-1]:
        try:
            return convert(value, hint, what)
        except ValueError:
            continue
    return convert(value, hints[-1], what)


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line; the kind of error is told where it is not the user's.

    Of a message that repeats a long word of the user's, the beginning and the end are shown: what is wrong, and the way
    out.

    Parameters
    ----------
    error : BaseException
        What was raised.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return text if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: {text}"


def aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Return names and texts as lines whose texts begin in one column.

    Parameters
    ----------
    lines : sequence of pairs of str
        Name and text.
    """
    width = max(len(name) for name, _ in lines) + 2
    return [f"{name:<{width}}{text}" for name, text in lines]
