"""What variables of the weather are: standard names, components of winds, and amounts that add up over time."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TEMPERATURE = ("K", "degC", "C", "celsius")
_ENERGY, _SPEED, _PRESSURE, _AMOUNT = ("J m-2",), ("m s-1",), ("Pa", "hPa"), ("kg m-2",)
# Standard name, units (see `plain_unit`) with which a name means it, and short names of ECMWF, NCEP and stations.
_KNOWN: tuple[tuple[str, Sequence[str], str], ...] = (
    ("air_temperature", _TEMPERATURE, "t t2m 2t tas ta tmp t_max t_min mx2t mn2t"),
    ("dew_point_temperature", _TEMPERATURE, "td d2m 2d"),
    ("sea_surface_temperature", _TEMPERATURE, "sst tos"),
    ("eastward_wind", _SPEED, "u u10 10u u100 100u uas ua"),
    ("northward_wind", _SPEED, "v v10 10v v100 100v vas va"),
    ("wind_speed", _SPEED, "ff ws si10 10si"),
    ("wind_speed_of_gust", _SPEED, "fxi fg10 10fg gust"),
    ("wind_from_direction", ("degrees", "degree"), "dd"),
    ("geopotential", ("m2 s-2",), "z"),
    ("specific_humidity", ("kg kg-1", "1"), "q huss hus"),
    ("relative_humidity", ("%",), "r u rh hurs"),
    ("air_pressure_at_mean_sea_level", _PRESSURE, "msl prmsl pmer psl"),
    ("surface_air_pressure", _PRESSURE, "sp pres ps"),
    ("precipitation_amount", _AMOUNT, "tp rr1 cp lsp pr"),
    ("lwe_thickness_of_precipitation_amount", ("m", "mm"), "tp rr1 cp lsp pr"),
    ("integral_wrt_time_of_surface_downwelling_shortwave_flux_in_air", _ENERGY, "ssrd"),
    ("integral_wrt_time_of_surface_downwelling_longwave_flux_in_air", _ENERGY, "strd"),
)
_SUMS = ("precipitation_amount", "snowfall_amount", "integral_wrt_time")
_EAST, _NORTH = "eastward_wind", "northward_wind"


def meaning(name: str, unit: str) -> dict[str, str]:
    """Return the attributes of a variable in the CF conventions, as far as its name and its unit tell them.

    Parameters
    ----------
    name : str
        Of the variable in its file.
    unit : str
        Its unit, empty where none is known: then the standard name is not guessed.

    Examples
    --------
    >>> meaning("t2m", "K")
    {'units': 'K', 'standard_name': 'air_temperature'}
    >>> meaning("tp", "m")["cell_methods"]
    'time: sum'
    """
    found = {"units": unit} if unit else {}
    for standard, units, names in _KNOWN:
        if plain_unit(unit) in units and name.lower() in names.split():
            found["standard_name"] = standard
            if any(part in standard for part in _SUMS):
                found["cell_methods"] = "time: sum"
    return found


def winds(variables: Sequence[str], standard_names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the numbers of the eastward and northward component of every wind, by a name such as ``u10,v10``.

    Two components belong together where their names are the same but for the letters u and v.

    Parameters
    ----------
    variables, standard_names : sequence of str
        Names of all variables; standard names are empty where none is known.

    Examples
    --------
    >>> winds(("t", "u10", "v10"), ("air_temperature", "eastward_wind", "northward_wind"))
    {'u10,v10': (1, 2)}
    """
    of = {name.lower(): k for k, name in enumerate(variables)}
    pairs = {}
    for k, (name, standard) in enumerate(zip(variables, standard_names, strict=True)):
        other = of.get(name.lower().replace("u", "v", 1))
        if standard == _EAST and other is not None and other != k and standard_names[other] == _NORTH:
            pairs[f"{name},{variables[other]}"] = (k, other)
    return pairs


def plain_unit(unit: str) -> str:
    """Return a unit in one of its spellings: ``m s**-1``, ``m s-1`` and ``m/s`` are the same.

    Parameters
    ----------
    unit : str
        As a file has it.

    Examples
    --------
    >>> plain_unit("m s**-1") == plain_unit("m/s") == plain_unit("m s-1")
    True
    """
    text = re.sub(r"/\s*([A-Za-z]+)\s*(\d*)", lambda m: f" {m[1]}-{m[2] or 1}", unit.strip())
    text = re.sub(r"\*\*|\^", "", text)
    return "K" if text.lower() in ("k", "kelvin", "degk", "deg_k") else " ".join(text.split())
