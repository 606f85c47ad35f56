"""Verification of a file of forecasts: measures, a table for the screen, CSV and figures."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.figures import maps
from mldd.loop import replacing
from mldd.problems.data import DataError, load_series
from mldd.problems.verification.forecast_file import ForecastFile, read_forecasts
from mldd.problems.verification.references import REFERENCES, Truth, matched
from mldd.problems.verification.scores import Scores, scores
from mldd.problems.verification.sums import Quantity, Sums, quantities, summed

Floats = NDArray[np.float64]
_SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True, eq=False)
class Verification:
    """What is known of forecasts after they were compared with what happened.

    Parameters
    ----------
    forecasts : ForecastFile
        What was verified.
    truth : Truth
        By what.
    of : list of Quantity
        Variables and winds.
    sums : Sums
        Per start.
    scores : Scores
        Measures by name, shape (L, Q), with their intervals.
    block : int
        Starts of a block of the bootstrap.
    """

    forecasts: ForecastFile
    truth: Truth
    of: list[Quantity]
    sums: Sums
    scores: Scores
    block: int

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per variable and lead time, with all measures."""
        return [self._row(lead, q) for q in range(len(self.of)) for lead in range(len(self.forecasts.hours))]

    def _row(self, lead: int, q: int) -> dict[str, Any]:
        quantity, found = self.of[q], self.scores
        row: dict[str, Any] = {"variable": quantity.name, "unit": quantity.unit}
        row |= {"lead_hours": float(self.forecasts.hours[lead])}
        row |= {"starts": int((self.sums.weight[:, lead, q] > 0).sum())}
        for name, values in found.values.items():
            row[name] = float(values[lead, q])
            if name in found.low:
                row |= {
                    f"{name}_low": float(found.low[name][lead, q]),
                    f"{name}_high": float(found.high[name][lead, q]),
                }
        return row

    def lines(self) -> list[str]:
        """Return the table for people: measures, with intervals for the errors."""
        members = self.sums.variance.any()
        head = ["variable", "lead", "RMSE", "", "bias", "ACC", *["spread", "CRPS"] * bool(members)]
        plain = ["bias", "acc", *["spread", "crps"] * bool(members), *(f"skill_{name}" for name in REFERENCES)]
        table = [[*head, *(f"skill {name}" for name in REFERENCES)]]
        for row in self.rows():
            unit = f" ({row['unit']})" if row["unit"] else ""
            cells = [f"{row['variable']}{unit}", f"{row['lead_hours']:g} h", f"{row['rmse']:.4g}"]
            cells += ["" if np.isnan(row["rmse_low"]) else f"[{row['rmse_low']:.4g}, {row['rmse_high']:.4g}]"]
            table.append(cells + [_number(row[name]) for name in plain])
        widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
        texts = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return texts + [f"note: {note}" for note in self.notes()]

    def notes(self) -> list[str]:
        """Return what the user should know, a sentence each."""
        said, series, forecasts = list(self.forecasts.notes), self.truth.series, self.forecasts
        if forecasts.grid is None and forecasts.area is None:
            said.append("places have equal weights: they are no latitude-longitude grid, and the file has no cell_area")
        begun = str(forecasts.starts.min()).replace("T", " ")[:16]
        said.append(
            f"climatology and linear model are those of {self.truth.end} times of {self.truth.past.name} before {begun}"
            if self.truth.end
            else f"{self.truth.past.name} has no time before {begun}: there is no climatology and no linear model"
        )
        low = self.scores.low["rmse"]
        said.append(
            f"intervals: 95 % of {_SAMPLES} samples of blocks of {self.block} starts"
            if not np.isnan(low).all()
            else f"no intervals: {len(forecasts.starts)} starts are fewer than two blocks of {self.block}"
        )
        lost = int((np.isnan(series.values).any(-1)).sum())
        return said + ([f"{lost} values of {series.name} are missing and do not count"] if lost else [])

    def write(self, folder: Path) -> list[Path]:
        """Write the table, a map and the curves over lead times; return their files.

        Parameters
        ----------
        folder : Path
            Where they are written; it is made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        table, rows = folder / "verification.csv", self.rows()
        with replacing(table) as new, new.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{x:.10g}" if isinstance(x, float) else x for k, x in row.items()})
        return [table, self._curves(folder / "lead_times.png"), self._map(folder / "map.png")]

    def _curves(self, path: Path) -> Path:
        found = self.scores.values
        names = [name for name in REFERENCES if not np.isnan(found[f"rmse_{name}"]).all()]
        curves = {
            f"{q.name} ({q.unit})" if q.unit else q.name: {
                **{name: found[f"rmse_{name}"][:, k] for name in names},
                "forecast": found["rmse"][:, k],
            }
            for k, q in enumerate(self.of)
        }
        maps.skill(list(self.forecasts.hours), curves, path, unit="h", title=Path(self.forecasts.name).name)
        return path

    def _map(self, path: Path) -> Path:
        """Draw where the first variable errs at the last lead time."""
        count = np.where(self.sums.map_count[:, 0] > 0, self.sums.map_count[:, 0], np.nan)
        panels = {
            "root mean square error": np.sqrt(self.sums.map_square[:, 0] / count),
            "bias": self.sums.map_error[:, 0] / count,
        }
        first, places = self.of[0], self.forecasts
        maps.fields(
            np.stack([places.latitude, maps.around(places.longitude)], axis=1),
            panels,
            path,
            errors=("bias",),
            grid=places.grid,
            label=f"{first.name} ({first.unit})" if first.unit else first.name,
            title=f"{Path(places.name).name}: {first.name}, {places.hours[-1]:g} h ahead",
        )
        return path


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def verify(
    forecasts: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    *,
    past: str | os.PathLike[str] | None = None,
    block: int = 0,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    reader: str = "",
    sort: bool = False,
    select: str = "",
) -> Verification:
    """Return the comparison of a file of forecasts with what happened.

    Parameters
    ----------
    forecasts : str or path
        NetCDF or Zarr, over starts, lead times and places, with members or without.
    truth : str or path
        A known series or a file with observations or analyses of the same variables at these places.
    past : str or path, optional
        A series that climatology and linear model are made of; by default the truth before the first start.
    block : int
        Starts of a block of the bootstrap; 0: as many as forecasts overlap, at least the cube root of all.
    seed : int
        Of the bootstrap.
    folder : path, optional
        Of the known series.
    reader : str
        Of the file of the truth, where its suffix does not say it.
    sort : bool
        Sort the times of the truth.
    select : str
        What is taken of the truth along other dimensions than time and place, as ``level=850:number=0``.

    Raises
    ------
    DataError
        A file that cannot be read, other places, variables or units, or no pair of forecast and truth.
    """
    made = read_forecasts(forecasts)
    chosen: dict[str, Any] = {"data": folder, "variables": made.variables, "reader": reader, "sort": sort}
    chosen |= {"select": tuple(select.split(":")) if select else ()}
    known = load_series(truth, **chosen)
    compared = matched(made, known, None if past is None else load_series(past, **chosen))
    of = quantities(made)
    sums = summed(made, compared, of)
    if not sums.weight.any():
        reach = f"{made.valid.min()}..{made.valid.max()}"
        raise DataError(
            f"{known.name}: expected values at the times of the forecasts ({reach}), got "
            f"{known.time[0]}..{known.time[-1]}; give the series of those times"
        )
    block = block or _overlapping(made)
    return Verification(made, compared, of, sums, scores(sums, block, _SAMPLES, seed), block)


def _overlapping(forecasts: ForecastFile) -> int:
    """Return how many starts in a row have forecasts of the same times, at least the cube root of all."""
    starts = len(forecasts.starts)
    usual = max(int(np.ceil(starts ** (1 / 3))), 1)
    if starts < 2:
        return usual
    between = np.median(np.diff(forecasts.starts).astype(np.int64)) / 3600.0
    return max(usual, int(np.ceil(forecasts.hours.max() / max(between, 1e-9))))
