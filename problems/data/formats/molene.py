"""The MATLAB file of the Molene data: stations of Brittany in January 2014."""

from __future__ import annotations

import io

import numpy as np

from mldd.problems.data import DataError, SeriesArrays, one_line

_NAMES = {"t": "temperature", "t_max": "maximal temperature", "t_min": "minimal temperature"}
_RADIUS = 6378137.0  # of the sphere of Web Mercator, metres


def read_molene(content: bytes, where: str) -> SeriesArrays:
    """Return the stations with complete temperature: the second graph of the file.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        Not that file.
    """
    import scipy.io

    try:
        graphs = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
        graph = graphs["gsp_molene_graphs"][1]
        x, y, altitude = np.asarray(graph.coordinates, dtype=np.float64).T
        fields = dict(zip(map(str, graph.data_name), graph.data, strict=True))
        variables = {name: np.asarray(fields[known], dtype=np.float32).T for name, known in _NAMES.items()}
    except Exception as error:  # a damaged file can raise anything
        raise DataError(
            f"{where}: expected the graphs of Molene, got {one_line(error)[:120]}; get the file anew"
        ) from None
    latitude = np.degrees(2 * np.arctan(np.exp(y / _RADIUS)) - np.pi / 2)
    time = np.datetime64("2014-01-01", "s") + np.arange(len(next(iter(variables.values())))) * np.timedelta64(1, "h")
    return SeriesArrays(time, latitude, np.degrees(x / _RADIUS), variables, altitude=altitude)
