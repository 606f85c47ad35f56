"""A trained network of `Weather`: what makes forecasts of any data set of Anemoi with these variables and cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.models import Prediction, check_said
from mldd.problems.data import DataError, Series, forcing
from mldd.problems.data.formats import damage_said
from mldd.problems.forecasts import Domain, PerturbedStarts, forecast_of, mesh_of, starts_of
from mldd.problems.nets import EncodeProcessDecode, MeshSource, NetworkModel, stack_meshes
from mldd.problems.weather.samples import Units, cell_inputs
from mldd.problems.weather.stores import opened

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_FITTED = ("mean", "deviation", "scales", "static")
_OPTIONS = ("horizon", "history", "member", "mesh_nodes")


class WeatherModel(NetworkModel):
    """A network that forecasts the variables it was trained on, one sample at a time.

    Parameters
    ----------
    net : EncodeProcessDecode
        The network.
    x : Tensor, shape (N,), optional
        Its parameters; zeros by default.
    domain : Domain
        Cells, variables and step.
    fitted : dict of str to ndarray
        ``mean``, ``deviation`` and ``scales`` of the variables, see `Units`; ``static``, place and constant fields of
        the cells, normalised, shape (n, k).
    options : dict
        ``horizon`` and ``history`` in steps, the ``member`` of an ensemble that was read, and the hidden mesh.
    """

    def __init__(
        self, net: Any, x: Tensor | None, domain: Domain, fitted: Mapping[str, Floats], options: dict[str, Any]
    ) -> None:
        super().__init__(net, x)
        self.domain, self.fitted, self.options = domain, dict(fitted), options

    def config(self) -> dict[str, Any]:
        """Return network, domain, normalisation and options."""
        return {
            "network": asdict(self.net),
            "domain": self.domain.config(),
            "fitted": {name: torch.from_numpy(np.array(of, np.float64)) for name, of in self.fitted.items()},
            "options": self.options,
        }

    @classmethod
    def of(cls, config: dict[str, Any]) -> WeatherModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.

        Raises
        ------
        ValueError
            It lacks what this version fits.
        """
        fitted, options = config["fitted"], config["options"]
        check_said(fitted, _FITTED)
        check_said(options, _OPTIONS)
        arrays = {name: of.numpy() for name, of in fitted.items()}
        domain = Domain.from_config(config["domain"])
        return cls(EncodeProcessDecode(**config["network"]), None, domain, arrays, options)

    @property
    def _units(self) -> Units:
        return Units(*(self.fitted[name] for name in ("mean", "deviation", "scales")))

    def predict(  # type: ignore[override]  # which options there are is said
        self,
        data: Any,
        *,
        start: str | Sequence[int] = "last",
        steps: int | None = None,
        members: int = 1,
        perturb: float = 0.0,
        seed: int = 0,
        member: str = "",
    ) -> Prediction:
        """Return forecasts in units of the data, over starts, lead times and cells, and over members if asked for.

        Of a file the times that forecasts begin at and those before them are read alone. A forecast begins where no
        time of its history is missing; at a gap it is a gap.

        Parameters
        ----------
        data : str, path or Series
            A data set of Anemoi, or a series in memory.
        start : str or sequence of int
            Where forecasts begin: ``last``, ``all``, a date, two dates as in ``2019-03-30T06..2019-03-31``, or numbers
            of times.
        steps : int, optional
            Number of lead times, 1 by default; more of them feed forecasts back.
        members : int
            Of an ensemble: the first one begins at the observations, the others at perturbed ones.
        perturb : float
            Standard deviation of independent normal errors of all observations, in those of the variables.
        seed : int
            Of the perturbations.
        member : str
            Number of the member of the file that forecasts begin at; that of the training by default.

        Raises
        ------
        DataError
            Other variables, cells or steps, or starts that the data do not have.
        ValueError
            Lead times that the network cannot reach, or members without perturbations.
        """
        ensemble, turns = PerturbedStarts(members, perturb, seed), 1 if steps is None else steps
        self._check_turns(turns)
        if isinstance(data, Series):
            missing = np.isnan(data.values).all((1, 2))
            origins, left = self._begun(data.name, data.time, np.asarray(missing), start)
            series = data
        else:
            series, origins, left = self._read(data, member, start)
        series = self.domain.matched(series)
        series = replace(series, notes=(*series.notes, *_said(left, series, origins)))
        leads = self.options["horizon"] * np.arange(1, turns + 1)

        def forecast(values: Floats) -> Prediction:
            made = self.forecasts(replace(series, values=values), origins, turns)
            return forecast_of(series, leads, origins, made, self.domain.name)

        one = ensemble.predicted(series.values, self.fitted["deviation"], forecast)
        about = {"data": series.name, "data_checksum": f"sha256:{series.digest}"}
        return replace(one, attributes={**one.attributes, **about})

    def _check_turns(self, turns: int) -> None:
        """Refuse lead times that cannot be reached: what is fed back must be the history of the next forecast."""
        horizon, history = self.options["horizon"], self.options["history"]
        if turns < 1:
            raise ValueError(f"`steps` must be >= 1 lead time, got {turns}")
        if turns > 1 and horizon > 1 and history > 1:
            raise ValueError(
                f"`steps` must be 1 for a network of horizon={horizon} and history={history}, which is not fed back, "
                f"got {turns}; train one with horizon=1 or history=1"
            )

    def _read(self, path: str | os.PathLike[str], member: str, start: Any) -> tuple[Series, Ints, int]:
        """Return the times of a data set that forecasts need, where they begin, and how many cannot."""
        store = opened(path, member or self.options["member"], self.domain.variables)
        where, names = store.where, store.wanted()
        with damage_said(where):
            origins, left = self._begun(where, store.time, store.missing, start)
            first = max(min(origins.min() - self.options["history"] + 1, len(store.time) - 2), 0)
            end = max(origins.max() + 1, first + 2)  # a series has two times
            values = store.rows(slice(first, end), names).transpose(0, 2, 1).astype(np.float64)
            values[store.missing[first:end]] = np.nan
            given: dict[str, Any] = {"grid": store.grid(), "units": tuple(store.unit(name) for name in names)}
            series = Series(where, values, store.time[first:end], *store.coordinates, tuple(names), **given)
        return series, origins - first, left

    def _begun(self, where: str, time: Any, missing: NDArray[np.bool_], start: Any) -> tuple[Ints, int]:
        """Return where forecasts begin, and how many of those that are asked for cannot."""
        history = self.options["history"]
        ready = np.arange(history - 1, len(time))
        ready = ready[~np.stack([missing[ready - k] for k in range(history)]).any(0)]
        if not len(ready):
            raise DataError(
                f"{where}: expected {history} times in a row for the history of a forecast, got {len(time)} with "
                f"{int(missing.sum())} missing; give more"
            )
        wanted = starts_of(start, where, time[: ready[-1] + 1], history - 1)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise DataError(f"`start` must be whole numbers of shape (S,), got {wanted.dtype} of shape {wanted.shape}")
        outside = wanted[(wanted < history - 1) | (wanted >= len(time))]
        begun = wanted[np.isin(wanted, ready)]
        if len(outside) or not len(begun):
            got = f"number {outside[0]}" if len(outside) else f"{start}, which is missing or has missing ones before it"
            raise DataError(
                f"{where}: forecasts must begin at a time with {history - 1} before it, numbers {history - 1} to "
                f"{ready[-1]}, got {got}; choose others"
            )
        return begun.astype(np.int64), len(wanted) - len(begun)

    @cached_property
    def _batch(self) -> Any:
        """The grid without samples."""
        domain, cells = self.domain, len(self.domain.latitude)
        mesh, none = mesh_of(domain.latitude, domain.longitude, self.options), np.zeros((cells, 0))
        piece = MeshSource(mesh, none, none).piece(np.arange(cells), self.net.layers)
        return stack_meshes([piece], single=True, **self.kind)

    def forecasts(self, series: Series, origins: Ints, turns: int = 1) -> Floats:
        """Return the forecasts, shape (S, n, turns, V), in units of the series.

        Parameters
        ----------
        series : Series
            That matches the domain.
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        turns : int
            How many lead times; forecasts are fed back.
        """
        domain, units, horizon = self.domain, self._units, self.options["horizon"]
        parameters = [p.detach() for p in self.tensors]
        made = np.empty((len(origins), series.nodes, turns, len(series.variables)))
        for s, t in enumerate(origins):
            past = series.values[t - np.arange(self.options["history"])]  # newest first
            for turn in range(turns):
                valid = series.moments(np.array([t + (turn + 1) * horizon]))
                sun = forcing(valid, domain.latitude, domain.longitude).transpose(1, 0, 2)
                inputs = cell_inputs(past.transpose(1, 0, 2)[:, None], units, self.fitted["static"], sun)[:, 0]
                batch = replace(self._batch, features=(torch.from_numpy(inputs).to(**self.kind),))
                with torch.no_grad():
                    z = self.net.outputs(parameters, batch, None).double().cpu().numpy()
                now = past[0] + z * units.scales
                past = np.concatenate([now[None], past[:-1]])
                made[s, :, turn] = now
        return made


def _said(left: int, series: Series, origins: Ints) -> tuple[str, ...]:
    """Return what is to be said of missing times and values."""
    gaps = int(np.isnan(series.values[origins]).sum())
    missing = f"{left} times that are missing, or have missing ones before them, begin no forecast"
    begun = f"{gaps} values are missing where forecasts begin: their forecasts are NaN"
    return (missing,) * (left > 0) + (begun,) * (gaps > 0)
