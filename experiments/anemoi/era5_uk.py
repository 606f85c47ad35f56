"""Write the data set of these experiments: hourly 2 m temperature of ERA5 over the British Isles as Anemoi keeps it.

    .venv-anemoi/bin/python experiments/anemoi/era5_uk.py runs/anemoi/era5uk.zarr

The numbers are those of the problem ``era5-uk`` (33 x 49 points, March 2019); ``anemoi-datasets create`` adds forcings
and statistics.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import xarray

from mldd.problems.data import load_series

RECIPE = """\
dates: {{start: {first}, end: {last}, frequency: 1h}}
input:
  join:
    - netcdf: {{path: {file}, param: [2t]}}
    - forcings:
        template: ${{input.join.0.netcdf}}
        param: [cos_latitude, sin_latitude, cos_longitude, sin_longitude, cos_julian_day, sin_julian_day,
                cos_local_time, sin_local_time, insolation]
"""


def write_netcdf(path, hours):
    """Write the series as CF NetCDF, and return its first and last date."""
    series = load_series("era5-uk")
    rows, columns = series.grid
    values = series.values[:hours, :, 0].reshape(-1, rows, columns).astype("float32")
    place = {
        "latitude": ("latitude", series.latitude.reshape(rows, columns)[:, 0], {"units": "degrees_north"}),
        "longitude": ("longitude", series.longitude.reshape(rows, columns)[0] % 360, {"units": "degrees_east"}),
    }
    for name, (_, _, attributes) in place.items():
        attributes["standard_name"] = name
    kind = {"units": "K", "standard_name": "air_temperature"}
    fields = {"2t": (("time", "latitude", "longitude"), values, kind)}
    time = series.time[:hours].astype("datetime64[ns]")
    xarray.Dataset(fields, {"time": time, **place}).to_netcdf(path)
    return str(series.time[0]), str(series.time[:hours][-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the .zarr to write")
    parser.add_argument("--hours", type=int, default=240, help="from the first one; default 240")
    options = parser.parse_args()
    out = options.out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    file, recipe = out.with_suffix(".nc"), out.with_suffix(".yaml")
    first, last = write_netcdf(file, options.hours)
    recipe.write_text(RECIPE.format(first=first, last=last, file=file))
    tool = Path(sys.executable).with_name("anemoi-datasets")
    subprocess.run([tool, "create", recipe, out, "--overwrite"], check=True)


if __name__ == "__main__":
    main()
