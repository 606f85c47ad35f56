"""What a forecasting network sees of a series: samples in time order, inputs and targets normalised by the past alone.

A sample is an origin t. Its inputs are known at t (or, as the height of the sun, at any time), its targets are the
changes from a base forecast to the values at t + h for the lead times h, in units of their root mean square over the
training part: the zero network is the base, persistence or a linear model, and has the loss 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import FORCING_NAMES as FORCING
from mldd.problems.data import DataError, Series, forcing
from mldd.problems.forecasts.forecast_plan import Plan
from mldd.problems.forecasts.known_inputs import covariate_scales, known_ahead, known_names
from mldd.problems.forecasts.linear_forecast import LinearForecast, first_origin, fit_linear, linear_model
from mldd.problems.forecasts.normalising import by_node, rms, scale, waves
from mldd.problems.forecasts.static_inputs import static_inputs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
_CUTS = 0.6, 0.8  # of the series: ends of training and validation part
_YEAR = 365 * 86400
# What is fitted to the training part, by the names of the properties; a trained forecast keeps all of it.
FITTED = ("mean", "deviation", "scales", "spreads", "static", "forced", "covariates", "is_cyclic", "marks_gaps")


@dataclass(frozen=True, eq=False)
class ForecastData:
    """Samples of a series.

    Parameters
    ----------
    series : Series
        Values of the field.
    plan : Plan
        What is forecast from what.
    given : dict
        What was fitted to another series, as `normalisation` returns it; nothing is then fitted to this one, which has
        no parts and may be as short as the history.

    Raises
    ------
    DataError
        A part of the series without a sample of every lead time, or a series without any origin.
    """

    series: Series
    plan: Plan
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a horizon that is longer than the series."""
        if self.given:
            vars(self).update(self.given)  # in the place of what the properties would fit
            if self.first >= self.series.times:
                raise DataError(
                    f"{self.series.name}: there must be {self.first + 1} times for the history of a forecast, got "
                    f"{self.series.times}; give a longer series"
                )
            return
        reach = max(self.plan.reached)
        for part in PARTS:
            if not (self.origins[part] + reach < self.end_of(part)).any():
                total = self.series.times
                raise DataError(
                    f"{self.series.name}: the {part} part must hold a forecast, got none: {total} times in 60/20/20, "
                    f"{self.first} before the first origin, lead times up to {reach}; shorten horizon or history"
                )

    # -------------------------------------------------------------------------------- splits

    @cached_property
    def cuts(self) -> tuple[int, int]:
        """Where validation and test part begin."""
        return int(_CUTS[0] * self.series.times), int(_CUTS[1] * self.series.times)

    @property
    def fitted(self) -> int:
        """Number of leading times that anything is fitted to."""
        return self.cuts[self.plan.labels == "all"]

    @cached_property
    def first(self) -> int:
        """The first origin with all inputs, those of the base included."""
        past = (self.plan.history - 1) * self.plan.spacing
        of_base = [first_origin(self.series, lead) for lead in self.plan.leads if self.plan.base == "linear"]
        return max(past, *(0, *(-offset for offset in self._daily), *of_base))

    @cached_property
    def origins(self) -> dict[Part, Ints]:
        """Origins of the parts: the shortest forecast begins and ends inside of its part.

        Targets of longer ones beyond the end of the part are masked (`end_of`). Inputs of the first origins of a part
        reach back into the one before, as they do when a forecast is made.
        """
        shortest, total = self.plan.reached[0], self.series.times
        starts = {"train": self.first, "validation": self.cuts[0], "test": self.cuts[1]}
        made = {}
        for part in PARTS:
            step = self.plan.stride if part == "train" else 1
            made[part] = np.arange(max(starts[part], self.first), min(self.end_of(part), total) - shortest, step)
        return made

    def end_of(self, part: Part) -> int:
        """Return the time at which the targets of a part end.

        Parameters
        ----------
        part : {"train", "validation", "test"}
            Which part.
        """
        return {"train": self.fitted, "validation": self.cuts[1], "test": self.series.times}[part]

    def check_origins(self, origins: Ints) -> None:
        """Refuse origins whose inputs the series does not hold.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.

        Raises
        ------
        DataError
            One line with the first of them.
        """
        if origins.ndim != 1 or origins.dtype.kind not in "iu":
            raise DataError(
                f"origins must be whole numbers of shape (S,), got {origins.dtype} of shape {origins.shape}"
            )
        outside = origins[(origins < self.first) | (origins >= self.series.times)]
        if len(outside):
            raise DataError(
                f"{self.series.name}: origins must be in {self.first}..{self.series.times - 1} (history, and last "
                f"time), got {outside[0]}; leave it out, or give a longer series"
            )

    # -------------------------------------------------------------------------------- normalisation

    def normalisation(self) -> dict[str, Any]:
        """Return all that was fitted to the training part, for the `given` of another series."""
        linear = ("coefficients",) * (self.plan.base == "linear")
        return {name: getattr(self, name) for name in (*FITTED, *("harmonics",) * self.is_cyclic, *linear)}

    @cached_property
    def mean(self) -> Floats:
        """Mean of every variable over the fitted part, or that of the file, shape (V,)."""
        given = self.series.supplement.mean
        return np.asarray(np.nan_to_num(np.nanmean(self._past, axis=(0, 1))) if given is None else given)

    @cached_property
    def deviation(self) -> Floats:
        """Standard deviation of every variable over the fitted part, or that of the file; 1 where it is 0; (V,)."""
        return scale(np.nanstd(self._past, (0, 1)) if (given := self.series.supplement.deviation) is None else given)

    @property
    def _past(self) -> Floats:
        past = self.series.values[: self.fitted]
        for name, empty in zip(self.series.variables, np.atleast_1d(np.isnan(past).all((0, 1))), strict=True):
            if empty:
                raise DataError(f"{self.series.name}: {name} must have values in the training part, got gaps only")
        return past

    @cached_property
    def constant(self) -> tuple[str, ...]:
        """Variables that do not vary in the fitted part; their scale is 1."""
        spread = np.nanmax(self._past, axis=(0, 1)) - np.nanmin(self._past, axis=(0, 1))
        return tuple(name for name, of in zip(self.series.variables, spread, strict=True) if of == 0)

    @cached_property
    def carried(self) -> Floats:
        """Values with gaps filled by the last observation, by the mean before the first one, shape (T, n, V)."""
        filled = self.series.carried()
        return np.where(np.isnan(filled), self.mean, filled)

    @cached_property
    def normal(self) -> Floats:
        """Those, normalised, shape (T, n, V)."""
        return (self.carried - self.mean) / self.deviation

    @cached_property
    def observed(self) -> NDArray[np.bool_]:
        """Where there is an observation, shape (T, n, V)."""
        return ~np.isnan(self.series.values)

    @property
    def inner(self) -> NDArray[np.bool_]:
        """Which nodes are forecast: all but those of a boundary, shape (n,)."""
        outer = self.series.supplement.outer
        return np.ones(self.series.nodes, dtype=np.bool_) if outer is None else ~outer

    @cached_property
    def scales(self) -> Floats:
        """Root mean square of the change from the base over the training samples, per lead and variable, (L, V).

        Area-weighted, in units of the series; 1 where nothing changes.
        """
        t = self.origins["train"]
        made = []
        for lead in self.plan.reached:
            mask = self._mask(t, lead, self.fitted) * self.series.weights[:, None]
            error = np.where(mask > 0, self._future(t, lead) - self.base(t, lead), 0.0)
            made.append(np.sqrt((mask * error**2).sum((0, 1)) / np.maximum(mask.sum((0, 1)), 1e-300)))
        return scale(np.stack(made))

    # -------------------------------------------------------------------------------- targets

    def _future(self, origins: Ints, lead: int) -> Floats:
        return self.carried[np.minimum(origins + lead, self.series.times - 1)]

    def _mask(self, origins: Ints, lead: int, end: int) -> NDArray[np.bool_]:
        """Say which forecasts count: value and origin are observed, and the value lies in the part; (S, n, V)."""
        inside = origins + lead < end
        there = self.observed[np.minimum(origins + lead, self.series.times - 1)] & self.observed[origins]
        return np.asarray(there & inside[:, None, None] & self.inner[:, None])

    @cached_property
    def coefficients(self) -> list[list[Floats]]:
        """Coefficients of the linear model of every lead time and variable, fitted to the fitted part."""
        return [
            [
                fit_linear(self.series, self.carried[:, :, v], self.observed[:, :, v], lead, self.fitted).coefficients
                for v in range(len(self.series.variables))
            ]
            for lead in self.plan.reached
        ]

    @cached_property
    def linear(self) -> dict[tuple[int, int], LinearForecast]:
        """The linear model of every lead and variable."""
        return {
            (lead, v): linear_model(self.series, lead, coefficients)
            for lead, of_lead in zip(self.plan.reached, self.coefficients, strict=True)
            for v, coefficients in enumerate(of_lead)
        }

    def base(self, origins: Ints, lead: int) -> Floats:
        """Return the forecast that a network starts from, shape (S, n, V), in units of the series.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        lead : int
            Steps ahead.
        """
        if self.plan.base == "persistence":
            return self.carried[origins]
        models = (self.linear[lead, v] for v in range(len(self.series.variables)))
        return np.stack([model(self.carried[:, :, v], origins) for v, model in enumerate(models)], axis=-1)

    def targets(self, origins: Ints, end: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Return changes from the base in units of `scales`, and which count; both (n, S, L V), by lead, by variable.

        Parameters
        ----------
        origins : ndarray, shape (S,)
            Steps at which forecasts begin.
        end : int
            Values at this time and later do not count.
        """
        changes, masks = [], []
        for k, lead in enumerate(self.plan.reached):
            masks.append(self._mask(origins, lead, end))
            change = (self._future(origins, lead) - self.base(origins, lead)) / self.scales[k]
            changes.append(np.where(masks[-1], change, 0.0))
        return by_node(np.concatenate(changes, -1)), by_node(np.concatenate(masks, -1))

    # -------------------------------------------------------------------------------- inputs

    @cached_property
    def _daily(self) -> tuple[int, ...]:
        """Per lead, the latest time at the hour of the forecast that is no later than the origin, minus the origin."""
        day = self.series.per_day
        if not day:
            return ()
        if self.plan.rollout > 1:
            return tuple(lead - day * -(-lead // day) for lead in self.plan.reached)
        return tuple(lead - day * -(-lead // day) for lead in self.plan.leads if lead % day)

    @cached_property
    def harmonics(self) -> Floats:
        """Coefficients of the mean daily cycle of every node in the fitted part, normalised, shape (5, n V)."""
        past = self.normal[: self.fitted]
        columns = waves(self.series.moments(np.arange(self.fitted)))
        return np.asarray(np.linalg.lstsq(columns, past.reshape(len(past), -1), rcond=None)[0])

    def cycle(self, times: Ints) -> Floats:
        """Return the mean daily cycle at any times, shape (S, n, V): mean and two harmonics of the hour.

        Parameters
        ----------
        times : ndarray, shape (S,), int64
            Steps, beyond the end of the series too.
        """
        return np.asarray(
            (waves(self.series.moments(times)) @ self.harmonics).reshape(len(times), *self.normal.shape[1:])
        )

    @cached_property
    def is_cyclic(self) -> bool:
        """Whether there is a daily cycle to be fitted: two days of the training part, and steps within the day."""
        seconds = self.fitted * self.series.step
        return self.plan.climatology and seconds >= 2 * 86400 and self.series.step <= 6 * 3600

    @cached_property
    def static(self) -> tuple[Floats, tuple[str, ...]]:
        """Place, altitude and variability of every node, normalised, shape (n, k), and their names."""
        of_variables = self.normal[: self.fitted].std(0) if self.plan.climatology else None
        return static_inputs(self.series, of_variables)

    @cached_property
    def spreads(self) -> dict[str, Floats]:
        """Root mean squares over training samples that make differences comparable to the values."""
        t = self.origins["train"]
        z, lead = self.normal, self.plan.leads
        made = {"increment": rms(z[t] - z[np.maximum(t - self.plan.spacing, 0)])}
        for k, offset in enumerate(self._daily[: len(lead)]):
            made[f"day {k}"] = rms(z[t + offset] - z[t])
        if self.is_cyclic:
            made["anomaly"] = rms(z[t] - self.cycle(t))
            for k, of in enumerate(lead):
                made[f"cycle {k}"] = rms(self.cycle(t + of) - self.cycle(t))
        return made

    @cached_property
    def covariates(self) -> dict[str, Floats]:
        """Mean and deviation of every known covariate over the fitted part, shape (2,)."""
        return covariate_scales(self.series, self.fitted)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Name every input."""
        plan, variables = self.plan, self.series.variables
        names = [f"{v}" for v in variables]
        names += [f"{v}: increment {k}" for k in range(1, plan.history) for v in variables]
        daily = plan.leads if plan.rollout > 1 else [k for k in plan.leads if self._daily and k % self.series.per_day]
        names += [f"{v}: last day at lead {k}" for k in daily[: len(self._daily)] for v in variables]
        if self.is_cyclic:
            names += [f"{v}: anomaly" for v in variables]
            names += [f"{v}: daily cycle to lead {k}" for k in plan.leads for v in variables]
        if plan.forcing:
            names += [f"{name} at lead {k}" for k in plan.leads for name in self.forced]
            names += ["cos_zenith"]
        names += [name for k in plan.leads for name in known_names(self.series, k)]
        if self.marks_gaps:
            names += [f"{v}: observed" for v in variables]
        return (*names, *self.static[1])

    @cached_property
    def marks_gaps(self) -> bool:
        """Whether inputs say which values are observed: where some are not."""
        return self.series.gaps > 0

    @cached_property
    def forced(self) -> tuple[str, ...]:
        """Forcing without the day of the year, unless the training part has seen a year."""
        whole = self.fitted * self.series.step >= _YEAR
        return tuple(name for name in FORCING if whole or not name.endswith("day"))

    def window(self, origins: Ints) -> Floats:
        """Return the history, normalised, newest first, shape (n, S, history V).

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        """
        back = np.arange(self.plan.history) * self.plan.spacing
        past = self.normal[origins[:, None] - back]  # (S, history, n, V)
        n = self.series.nodes
        return np.ascontiguousarray(past.transpose(2, 0, 1, 3).reshape(n, len(origins), -1))

    @cached_property
    def mixing(self) -> Floats:
        """The matrix that makes inputs of the history, shape (history V, F); what else they contain is `known`."""
        v, plan = len(self.series.variables), self.plan
        one, none = np.eye(v), np.zeros((v * (plan.history - 1), v))
        level = np.concatenate([one, none])
        blocks = [level]
        for k in range(plan.history - 1):
            block = np.zeros((plan.history, v, v))
            block[k], block[k + 1] = one / self.spreads["increment"], -one / self.spreads["increment"]
            blocks.append(block.reshape(-1, v))
        blocks += [-level / self.spreads[f"day {k}"] for k in range(len(self._daily[: len(plan.leads)]))]
        if self.is_cyclic:
            blocks.append(level / self.spreads["anomaly"])
        made = np.concatenate(blocks, axis=1)
        rest = len(self.feature_names) - made.shape[1]
        return np.concatenate([made, np.zeros((len(made), rest))], axis=1)

    def known(self, origins: Ints, turn: int = 0) -> Floats:
        """Return what inputs contain besides the history, shape (n, S, F).

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        turn : int
            Turn of a rollout, from 0.
        """
        plan, series = self.plan, self.series
        now = origins + turn * plan.leads[0]
        shape = (len(origins), series.nodes, len(series.variables))
        parts: list[Any] = [np.zeros((*shape[:2], plan.history * shape[2]))]
        offsets = self._daily[turn : turn + 1] if plan.rollout > 1 else self._daily
        parts += [self.normal[origins + o] / self.spreads[f"day {k}"] for k, o in enumerate(offsets)]
        if self.is_cyclic:
            cycle = self.cycle(now)
            parts.append(-cycle / self.spreads["anomaly"])
            parts += [
                (self.cycle(now + lead) - cycle) / self.spreads[f"cycle {k}"] for k, lead in enumerate(plan.leads)
            ]
        if plan.forcing:
            parts += [self._forcing(now + lead, self.forced) for lead in plan.leads]
            parts.append(self._forcing(now, ("cos_zenith",)))
        is_open = bool(self.given)  # a series of the training has targets beyond its end that do not count
        parts += [known_ahead(series, self.normal, self.covariates, now + lead, is_open) for lead in plan.leads]
        if self.marks_gaps:
            parts.append(self.observed[origins] if turn == 0 else np.zeros(shape))
        static = self.static[0]
        parts.append(np.broadcast_to(static, (len(origins), *static.shape)))
        return np.asarray(by_node(np.concatenate(parts, axis=-1)))

    def _forcing(self, times: Ints, names: tuple[str, ...]) -> Floats:
        series = self.series
        moments = series.moments(times)
        return forcing(moments, series.latitude, series.longitude)[:, :, [FORCING.index(name) for name in names]]

    def features(self, origins: Ints) -> Floats:
        """Return the inputs of a single forecast, shape (n, S, F).

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        """
        return self.window(origins) @ self.mixing + self.known(origins)
