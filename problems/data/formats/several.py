"""Several files that hold one series, each a piece of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mldd.problems.data import DataError, SeriesArrays


def along_time(pieces: Sequence[SeriesArrays], where: str) -> SeriesArrays:
    """Return the series that files hold together, in the order of their first times.

    Parameters
    ----------
    pieces : sequence of SeriesArrays
        One per file.
    where : str
        The pattern that names them.

    Raises
    ------
    DataError
        They differ in variables, units, nodes or calendar, or are counted in a calendar of models.
    """
    ordered = sorted(pieces, key=lambda piece: piece.time[0])
    first = ordered[0]
    for piece in ordered[1:]:
        unlike = _difference(first, piece)
        if unlike:
            raise DataError(f"{where}: files of one series must share the {unlike}, got others; choose some of them")
    if first.calendar != "standard":
        raise DataError(
            f"{where}: several files are joined in the standard calendar, got {first.calendar}; join them by ncrcat"
        )
    values = {name: np.concatenate([p.variables[name] for p in ordered]) for name in first.variables}
    notes = tuple(dict.fromkeys(note for piece in ordered for note in piece.notes))
    time = np.concatenate([piece.time for piece in ordered])
    return replace(first, time=time, variables=values, notes=(*notes, f"{len(pieces)} files were joined along time"))


def _difference(one: SeriesArrays, other: SeriesArrays) -> str:
    """Return what two pieces do not share, nothing where they are of one series."""
    if set(one.variables) != set(other.variables):
        return "variables"
    if dict(one.units) != dict(other.units):
        return "units"
    if one.calendar != other.calendar:
        return "calendar"
    for name in ("latitude", "longitude", "altitude"):
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            return name
    pairs = ((of, other.supplement.static[name]) for name, of in one.supplement.static.items())
    if not all(np.array_equal(a, b) for a, b in pairs):
        return "static fields"
    shapes = all(one.variables[name].shape[1:] == other.variables[name].shape[1:] for name in one.variables)
    return "" if shapes else "nodes"
