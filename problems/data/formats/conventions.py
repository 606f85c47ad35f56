"""What the numbers of a field mean: which quantity, in which unit, over which calendar, and which are missing.

Every coordinate and variable of a file goes through one of these functions. What a file does not say is not guessed:
it is decoded where it can have one meaning only, and refused otherwise.

References
----------
NetCDF Climate and Forecast conventions, 1.11, sections 2.5, 4 and 8.1; NetCDF User's Guide, appendix A.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mldd.algebra import way_to_install
from mldd.problems.data import CALENDARS, DataError, one_line

Array = NDArray[Any]
Floats = NDArray[np.float64]
Attributes = Mapping[str, Any]
TIMES, LATITUDES, LONGITUDES = ("time", "valid_time"), ("latitude", "lat"), ("longitude", "lon")
ALTITUDES = ("altitude", "elevation")
_STANDARD = ("standard", "gregorian", "proleptic_gregorian", "julian")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_SECONDS |= {"millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9}
_SHORT = {"s": "second", "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "h": "hour"}
_SHORT |= {"hr": "hour", "hrs": "hour", "d": "day"} | {f"{unit}s": unit for unit in (*_SECONDS, "month", "year")}
_SINCE = re.compile(r"\b([a-z]+) since (?:the )?(\S.*)", re.IGNORECASE)
# What NetCDF writes where nothing was written, by type.
_FILL = {"i2": -32767, "i4": -2147483647, "i8": -9223372036854775806, "f4": 9.969209968386869e36}
_FILL |= {"u2": 65535, "u4": 4294967295, "u8": 18446744073709551614, "f8": 9.969209968386869e36}
_PATTERNS = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_DEGREES = re.compile(r"deg(ree)?s?(_?(north|east|n|e|true|t))?", re.IGNORECASE)


def quantity_of(attributes: Attributes) -> str:
    """Return ``latitude``, ``longitude`` or ``time`` where the attributes of a variable say so, else nothing.

    Parameters
    ----------
    attributes : dict
        Those of the CF conventions: `standard_name`, `units`.
    """
    standard, units = str(attributes.get("standard_name", "")), str(attributes.get("units", ""))
    if standard:
        return standard if standard in ("latitude", "longitude", "time") else ""
    if _DEGREES.fullmatch(units):
        last = units.lower().removeprefix("degrees").removeprefix("degree").lstrip("_")
        return {"n": "latitude", "north": "latitude", "e": "longitude", "east": "longitude"}.get(last, "")
    return "time" if _SINCE.search(units) else ""


def no_variable(where: str, name: str, known: Collection[str]) -> NoReturn:
    """Refuse the name of a variable.

    Parameters
    ----------
    where : str
        Names the file.
    name : str
        Which is asked for.
    known : collection of str
        Those there are.

    Raises
    ------
    DataError
        Always.
    """
    raise DataError(f"{where}: variable must be one of {', '.join(known) or 'none'}, got {name!r}; correct the name")


# ---------------------------------------------------------------------------------------------------- values


def measured(raw: Array, attributes: Attributes, where: str) -> Floats:
    """Return values in their unit, NaN where they are missing.

    Missing are the fill value, `missing_value`, and what lies outside of the valid range. A reader of NetCDF sets
    `_FillValue` to `default_fill` where the file does not say it.

    Parameters
    ----------
    raw : array
        Numbers as they are stored.
    attributes : dict
        `scale_factor`, `add_offset`, `_FillValue`, `missing_value`, `valid_min`, `valid_max`, `valid_range`,
        `_Unsigned`; empty where the format has none.
    where : str
        Names the file in errors.

    Raises
    ------
    DataError
        An attribute that is no number.
    """
    unsigned = str(attributes.get("_Unsigned", "")).lower()
    if unsigned in ("true", "false") and raw.dtype.kind in "iu":
        raw = raw.view(f"{'u' if unsigned == 'true' else 'i'}{raw.dtype.itemsize}")
    scale, offset = (_number(attributes, name, where) for name in ("scale_factor", "add_offset"))
    missing = np.isnan(raw) if raw.dtype.kind == "f" else np.zeros(raw.shape, dtype=np.bool_)
    for value in _fills(raw, attributes, where):
        missing |= raw == value
    values = raw.astype(np.float64)
    if scale.size:
        values *= scale[0]
    if offset.size:
        values += offset[0]
    low, high, packed = _range(raw, attributes, where)
    judged = raw if packed else values
    with np.errstate(invalid="ignore"):
        missing |= (judged < low) | (judged > high)
    values[missing] = np.nan
    return values


def _number(attributes: Attributes, name: str, where: str) -> Array:
    """Return an attribute as numbers, empty where there is none."""
    if name not in attributes:
        return np.empty(0)
    value = np.ravel(np.asarray(attributes[name]))
    if value.dtype.kind not in "fiu":
        raise DataError(f"{where}: the attribute {name} must be a number, got {attributes[name]!r}; correct it")
    return value


def _fills(raw: Array, attributes: Attributes, where: str) -> list[Any]:
    """List the numbers that stand for a missing value, in the type in which values are stored."""
    given = [value for name in ("_FillValue", "missing_value") for value in _number(attributes, name, where)]
    if raw.dtype.kind == "f":
        return [raw.dtype.type(value) for value in given]
    whole = (_wrapped(int(value), np.iinfo(raw.dtype)) for value in given if float(value).is_integer())
    return [value for value in whole if value is not None]


def _wrapped(value: int, bounds: Any) -> int | None:
    """Return a fill value in the range of a type that is stored as its signed twin; None where it has no place."""
    span = 2**bounds.bits
    return next((v for v in (value, value + span, value - span) if bounds.min <= v <= bounds.max), None)


def default_fill(raw: Array) -> dict[str, Any]:
    """Return the attribute `_FillValue` that NetCDF means where a variable has none, nothing for bytes and text.

    Parameters
    ----------
    raw : array
        Numbers as they are stored.
    """
    stored = f"{raw.dtype.kind}{raw.dtype.itemsize}"
    return {"_FillValue": _FILL[stored]} if stored in _FILL else {}


def _range(raw: Array, attributes: Attributes, where: str) -> tuple[float, float, bool]:
    """Return the valid range, and whether it is meant for values as they are stored."""
    least, most, span = (_number(attributes, name, where) for name in ("valid_min", "valid_max", "valid_range"))
    if span.size not in (0, 2):
        raise DataError(f"{where}: the attribute valid_range must be two numbers, got {span.tolist()}; correct it")
    low, high = (span[0], span[1]) if span.size else (-np.inf, np.inf)
    low, high = (least[0] if least.size else low), (most[0] if most.size else high)
    kinds = {a.dtype.kind for a in (least, most, span) if a.size}
    # of the type of packed numbers: in their unit; otherwise of the type, and in the unit, of what is unpacked
    packed = not (raw.dtype.kind in "iu" and kinds == {"f"})
    return float(low), float(high), packed


# ---------------------------------------------------------------------------------------------------- places


def degrees(raw: Array, attributes: Attributes, quantity: str, where: str) -> Floats:
    """Return latitudes or longitudes in degrees.

    Parameters
    ----------
    raw : array
        Numbers as they are stored.
    attributes : dict
        As in `measured`, and `units`: degrees where there are none.
    quantity : {"latitude", "longitude"}
        Which of the two.
    where : str
        Names the file in errors.

    Raises
    ------
    DataError
        Another unit, or no numbers.
    """
    if raw.dtype.kind not in "fiu":
        raise DataError(f"{where}: {quantity} must be numbers, got {raw.dtype}; convert them")
    values, unit = measured(raw, attributes, where), str(attributes.get("units", "")).strip()
    if unit.lower() in ("radian", "radians", "rad"):
        return np.degrees(values)
    if unit and not _DEGREES.fullmatch(unit):
        raise DataError(
            f"{where}: {quantity} must be in degrees or radians, got unit {unit!r}; write latitudes and longitudes of "
            "the nodes into the file"
        )
    return values


def metres(raw: Array, attributes: Attributes) -> Floats | None:
    """Return heights in metres, None where their unit is no length.

    Parameters
    ----------
    raw : array
        Numbers as they are stored.
    attributes : dict
        As in `measured`, and `units`: metres where there are none.
    """
    factor = {"": 1.0, "m": 1.0, "metre": 1.0, "metres": 1.0, "meter": 1.0, "meters": 1.0, "km": 1e3, "ft": 0.3048}
    unit = str(attributes.get("units", "")).strip().lower()
    return measured(raw, attributes, "altitude") * factor[unit] if unit in factor else None


# ---------------------------------------------------------------------------------------------------- times


def dates(raw: Array, attributes: Attributes, where: str) -> tuple[Array, str]:
    """Return times as datetime64[s], and the calendar they are counted in.

    In the calendars of models (`CALENDARS`) the first time is the date that the file means, and the others follow at
    the true distance in seconds, whatever the number of days in February.

    Parameters
    ----------
    raw : array, shape (T,)
        Dates, text of dates, numbers in a unit since a date, or dates written as digits (20200131).
    attributes : dict
        `units` and `calendar`; empty where the format has none.
    where : str
        Names the file in errors.

    Raises
    ------
    DataError
        Times without a unit, in an unknown calendar, with missing ones, or with fractions of a second.
    """
    raw = np.ravel(raw)
    if raw.dtype.kind == "M":
        return _whole_seconds(raw, where), "standard"
    if raw.dtype.kind in "SUO":
        return _of_text(raw, where), "standard"
    if raw.dtype.kind not in "fiu":
        raise DataError(f"{where}: times must be dates, got {raw.dtype}; write dates")
    values = measured(raw, {k: v for k, v in attributes.items() if k != "units"}, where)
    if np.isnan(values).any():
        raise DataError(f"{where}: every time must be known, got {int(np.isnan(values).sum())} missing; leave them out")
    texts = [str(attributes.get(name, "")) for name in ("units", "long_name", "description", "comment")]
    since = next((found for found in map(_SINCE.search, texts) if found), None)
    if since is not None:
        exact = raw if raw.dtype.kind in "iu" and not {"scale_factor", "add_offset"} & set(attributes) else values
        return _since(exact, since[1].lower(), since[2].strip(), str(attributes.get("calendar", "standard")), where)
    digits = _of_digits(values)
    if digits is None:
        unit = f"unit {texts[0]!r}" if texts[0] else "no unit"
        raise DataError(
            f"{where}: times must be dates or have a unit such as 'hours since 1970-01-01', got {raw.dtype} like "
            f"{raw[0] if raw.size else 'nothing'} with {unit}; write dates, or set the attribute units of time"
        )
    return digits, "standard"


def durations(raw: Array, attributes: Attributes, where: str) -> Array:
    """Return steps of a forecast as timedelta64[s].

    Parameters
    ----------
    raw : array, shape (T,)
        Numbers, or timedelta64.
    attributes : dict
        With the `units`.
    where : str
        Names the file in errors.

    Raises
    ------
    DataError
        No unit of time, or fractions of a second.
    """
    if raw.dtype.kind == "m":
        return _rounded(raw / np.timedelta64(1, "s"), where).astype("timedelta64[s]")
    unit = _unit(str(attributes.get("units", "")))
    if unit not in _SECONDS:
        got = attributes.get("units", "none")
        raise DataError(f"{where}: steps of a forecast must have a unit like hours, got {got!r}; set the attribute")
    return _rounded(raw.astype(np.float64) * _SECONDS[unit], where).astype("timedelta64[s]")


def _unit(text: str) -> str:
    word = text.strip().lower()
    return _SHORT.get(word, word)


def _whole_seconds(time: Array, where: str) -> Array:
    """Return dates in seconds; refuse those between two seconds."""
    seconds = time.astype("datetime64[s]")
    between = ~np.isnat(time) & (seconds != time)
    if between.any():
        step = np.diff(time.astype("datetime64[ns]")).astype(np.int64)
        _refuse_fractions(float(step.min()) / 1e9 if step.size else 0.0, where)
    return seconds


def _refuse_fractions(step: float, where: str) -> NoReturn:
    """Refuse times between two seconds: true ones, or days that are rounded in single precision."""
    if step >= 1:
        raise DataError(
            f"{where}: times must be whole seconds, got steps of {step:g} s; write them as whole numbers, or in double "
            "precision"
        )
    raise DataError(
        f"{where}: times must be whole seconds, got steps of {step:g} s, below a second; average them to seconds, as "
        "in ds.resample(time='1s').mean()"
    )


def _rounded(seconds: Floats, where: str) -> NDArray[np.int64]:
    """Round to whole seconds what is off by the rounding of days and hours; refuse real fractions."""
    whole = np.rint(seconds)
    if np.abs(seconds - whole).max(initial=0.0) > 0.05:
        steps = np.diff(np.sort(seconds))
        _refuse_fractions(float(steps[steps > 0].min(initial=np.inf)), where)
    return whole.astype(np.int64)


def _of_text(raw: Array, where: str) -> Array:
    """Read dates that are written as text."""
    texts = [t.decode(errors="replace") if isinstance(t, bytes) else str(t) for t in raw]
    try:
        plain = [re.sub(r"(Z|[+-]00:?00| UTC)$", "", t.strip()) for t in texts]
        return _whole_seconds(np.array(plain, dtype="datetime64[ns]"), where)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}: times must be dates like 2020-01-31T06:00, got text {texts[0]!r}; write dates"
        ) from None


def _of_digits(values: Floats) -> Array | None:
    """Read dates that are written as digits, with a fraction of the day behind eight of them; None where they are none.

    The width and every month, day and hour must fit, which seconds since 1970 do not.
    """
    whole = np.floor(values)
    width = len(str(int(whole[0]))) if values.size and values.min() > 0 and values.max() < 1e15 else 0
    low, high = 10.0 ** (width - 1), 10.0**width
    if width not in _PATTERNS or (whole < low).any() or (whole >= high).any():
        return None
    if width > 8 and (whole != values).any():
        return None
    texts = [str(int(number)).ljust(14, "0") for number in whole]
    try:
        made = [f"{t[:4]}-{t[4:6]}-{t[6:8]}T{t[8:10]}:{t[10:12]}:{t[12:14]}" for t in texts]
        days = np.array(made, dtype="datetime64[s]")
    except ValueError:
        return None
    return np.asarray(days + np.rint((values - whole) * 86400).astype("timedelta64[s]"))


def _since(values: Array, word: str, start: str, calendar: str, where: str) -> tuple[Array, str]:
    """Count a unit from a date on, in a calendar."""
    unit = _unit(word)
    name = calendar.lower()
    if start.lower().startswith(("epoch", "unix")):
        start = "1970-01-01"
    if name not in (*_STANDARD, *CALENDARS):
        raise DataError(
            f"{where}: the calendar must be one of {', '.join((*_STANDARD, *CALENDARS))}, got {calendar!r}; set "
            "the attribute calendar of time to the one that is meant"
        )
    if unit in ("month", "year"):
        return _months_since(values, 12 if unit == "year" else 1, start, where), "standard"
    if unit not in _SECONDS:
        raise DataError(
            f"{where}: times must be seconds, minutes, hours, days or months since a date, got {word!r}; convert them"
        )
    factor = _SECONDS[unit]
    whole = values.astype(np.int64) if values.dtype.kind in "iu" else values  # differences of unsigned ones wrap
    elapsed = _rounded((whole - whole[0]) * factor, where)
    return _first_date(float(values[0]) * factor, start, name, where) + elapsed.astype("timedelta64[s]"), (
        "standard" if name in _STANDARD else name
    )


def _first_date(seconds: float, start: str, calendar: str, where: str) -> Any:
    """Return the date that lies so many seconds behind a start in a calendar, as a datetime64[s]."""
    try:
        import cftime
    except ImportError:
        raise DataError(
            f"{where}: times in a calendar need cftime, which is not installed: {way_to_install('cftime')}"
        ) from None
    try:
        date = cftime.num2date(seconds, f"seconds since {start}", calendar, only_use_cftime_datetimes=True)
        if calendar in _STANDARD:
            date = date.change_calendar("proleptic_gregorian")
    except (ValueError, OverflowError, TypeError) as error:
        raise DataError(
            f"{where}: times must count from a date, got {start!r} ({one_line(error)}); correct it"
        ) from None
    if date.microsecond not in range(50_000) and date.microsecond not in range(950_000, 1_000_000):
        _refuse_fractions(date.microsecond / 1e6, where)
    month = np.datetime64(f"{date.year:04d}-{date.month:02d}", "M")
    last = int(((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(int))
    day = month.astype("datetime64[D]") + (min(date.day, last) - 1)  # there is a 30 February in 360_day
    past = date.hour * 3600 + date.minute * 60 + date.second + (date.microsecond >= 500_000)
    return day.astype("datetime64[s]") + np.timedelta64(past, "s")


def _months_since(values: Array, factor: int, start: str, where: str) -> Array:
    """Count calendar months, which have no fixed length, from a date on."""
    months = np.rint(values.astype(np.float64) * factor)
    if np.abs(values * factor - months).max(initial=0.0) > 1e-6:
        raise DataError(
            f"{where}: months have no fixed length, so times must be whole months, got {values[0]}; give days since"
        )
    origin = _first_date(0.0, start, "proleptic_gregorian", where)
    if origin.astype("datetime64[D]").item().day > 28:
        raise DataError(f"{where}: months must be counted from a day that every month has, got {start!r}; correct it")
    within = origin - origin.astype("datetime64[M]").astype("datetime64[s]")
    counted = origin.astype("datetime64[M]") + months.astype(np.int64).astype("timedelta64[M]")
    return np.asarray(counted.astype("datetime64[s]") + within)
