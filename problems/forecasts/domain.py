"""Where and of what a network forecasts: nodes, graph, variables, step; other series are brought into this form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.problems.data import Calendar, DataError, Series, Supplement, places_of, plain_unit

Floats = NDArray[np.float64]
_ARRAYS = ("latitude", "longitude", "altitude", "area")


@dataclass(frozen=True, eq=False)
class Domain:
    """Nodes, variables and times of the series that a network was trained on.

    Parameters
    ----------
    name : str
        Of the series, for messages.
    latitude, longitude : ndarray, shape (n,)
        Degrees.
    altitude : ndarray, shape (n,), optional
        Metres.
    grid : tuple of int, optional
        Rows and columns of a latitude-longitude grid.
    variables, units : tuple of str
        Names of the variables, and their units where they are known.
    step : int
        Seconds between two times.
    calendar : Calendar
        How times follow each other.
    graph : Graph or None
        Of the network; None where it has a mesh of its own alone.
    given : Graph, optional
        That came with the series, instead of one from coordinates.
    area : ndarray, shape (n,), optional
        Of the nodes, where they are some of the cells of a grid.
    """

    name: str
    latitude: Floats
    longitude: Floats
    altitude: Floats | None
    grid: tuple[int, int] | None
    variables: tuple[str, ...]
    units: tuple[str, ...]
    step: int
    calendar: Calendar
    graph: Graph | None
    given: Graph | None
    area: Floats | None = None

    @staticmethod
    def of(series: Series, graph: Graph) -> Domain:
        """Return the domain of a series.

        Parameters
        ----------
        series : Series
            That of the training.
        graph : Graph
            Of the network.
        """
        s = series
        place = s.latitude, s.longitude, s.altitude, s.grid
        return Domain(s.name, *place, s.variables, s.units, s.step, s.calendar, graph, s.graph, s.supplement.area)

    def config(self) -> dict[str, Any]:
        """Return the domain as tensors, numbers and strings."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {
            **{name: None if a is None else torch.from_numpy(np.array(a, np.float64)) for name, a in arrays.items()},
            **{name: _edges(graph) for name, graph in (("graph", self.graph), ("given", self.given))},
            **{name: getattr(self, name) for name in ("name", "grid", "variables", "units", "step")},
            "calendar": {"name": self.calendar.name, "months": self.calendar.months},
        }

    @staticmethod
    def from_config(config: dict[str, Any]) -> Domain:
        """Return the domain that `config` has described.

        Parameters
        ----------
        config : dict
            Read from a file.
        """
        made = dict(config, calendar=Calendar(**config["calendar"]))
        for name in _ARRAYS:
            made[name] = None if config[name] is None else config[name].numpy()
        for name in ("graph", "given"):
            made[name] = None if config[name] is None else Graph(**config[name])
        for name in ("variables", "units"):
            made[name] = tuple(config[name])
        made["grid"] = None if config["grid"] is None else tuple(config["grid"])
        return Domain(**made)

    def matched(self, series: Series) -> Series:
        """Return a series with the variables and nodes of the domain, in their order.

        Parameters
        ----------
        series : Series
            It may have more variables and nodes, in any order.

        Raises
        ------
        DataError
            It lacks some of them, or has other units, another step or calendar.
        """
        self._check_times(series)
        chosen = series.chosen(self.variables)
        for name, wanted, given in zip(self.variables, self.units, chosen.units, strict=False):
            if wanted and given and plain_unit(wanted) != plain_unit(given):
                raise DataError(
                    f"{series.name}: {name} must be in {wanted} as in the training on {self.name}, got {given}; "
                    "convert it"
                )
        order = self._places(series)
        said = series.supplement.attributes
        known = {name: values[:, order] for name, values in series.supplement.known.items()}
        extra = series.nodes - len(order)
        more = (f"{extra} nodes that the training on {self.name} did not have are left out",) if extra else ()
        return replace(
            chosen,
            values=np.ascontiguousarray(chosen.values[:, order]),
            latitude=self.latitude,
            longitude=self.longitude,
            altitude=self.altitude,
            grid=self.grid,
            supplement=Supplement(graph=self.given, area=self.area, known=known, attributes=said),
            units=self.units or chosen.units,
            notes=(*series.notes, *more),
        )

    def _check_times(self, series: Series) -> None:
        same = series.step == self.step or self.calendar.months > 0
        if series.calendar.months != self.calendar.months or not same:
            raise DataError(
                f"{series.name}: times must be {self.step} s apart as in the training on {self.name}, got "
                f"{series.step} s; resample the series"
            )
        if series.calendar.name != self.calendar.name:
            raise DataError(
                f"{series.name}: the calendar must be {self.calendar.name} as in the training on {self.name}, got "
                f"{series.calendar.name}; convert the times"
            )

    def _places(self, series: Series) -> NDArray[np.int64]:
        """Return which node of a series every node of the domain is, shape (n,)."""
        places = places_of((self.latitude, self.longitude), (series.latitude, series.longitude))
        lost = int((places < 0).sum())
        if lost or len(np.unique(places)) < len(places):
            got = f"{series.nodes} nodes" + (f" without {lost} of these" if lost else ", some of them in one place")
            raise DataError(
                f"{series.name}: there must be the {len(places)} nodes of the training on {self.name} (latitude "
                f"{_span(self.latitude)}, longitude {_span(self.longitude)}), got {got}; regrid the series, or "
                "train on it"
            )
        return places


def _span(degrees: Floats) -> str:
    return f"{degrees.min():g}..{degrees.max():g}"


def _edges(graph: Graph | None) -> dict[str, Any] | None:
    if graph is None:
        return None
    return {"indptr": graph.indptr, "indices": graph.indices, "weights": graph.weights}
