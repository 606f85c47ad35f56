"""Checks of the fields of dataclasses, with one wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_choices(record: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuse fields that have none of their possible values.

    Parameters
    ----------
    record : Any
        A dataclass.
    choices : dict
        Possible values by the name of a field.

    Raises
    ------
    ValueError
        It names the field.
    """
    for name, possible in choices.items():
        if getattr(record, name) not in possible:
            raise ValueError(f"`{name}` must be one of {', '.join(possible)}, got {getattr(record, name)!r}")


def check_least(record: Any, least: Mapping[str, int]) -> None:
    """Refuse fields below their least value.

    Parameters
    ----------
    record : Any
        A dataclass.
    least : dict
        Least values by the name of a field.

    Raises
    ------
    ValueError
        It names the field.
    """
    for name, bound in least.items():
        if getattr(record, name) < bound:
            raise ValueError(f"`{name}` must be >= {bound}, got {getattr(record, name)}")
