"""Small files as Anemoi writes them: a data set (Zarr format 2, layout gridded) and a graph."""

import json

import numpy as np
import torch

from mldd.problems.data import icosphere
from mldd.problems.data.formats import TypedGraph

FORCING = "cos_latitude"


def grid(rows, columns):
    """Latitudes and longitudes of all cells of a global grid, row by row from the north."""
    latitude, longitude = np.linspace(80, -80, rows), np.arange(columns) * 360 / columns
    return np.repeat(latitude, columns), np.tile(longitude, rows)


def write_zarr(path, data, variables, dates, latitudes, longitudes, missing=(), **attributes):
    """Write a data set with the arrays, chunks and attributes of ``anemoi-datasets create``."""
    import zarr

    versioned = {"zarr_format": 2} if int(zarr.__version__.split(".")[0]) >= 3 else {}
    group = zarr.open_group(str(path), mode="w", **versioned)
    with np.errstate(all="ignore"):
        flat = np.asarray(data, dtype=np.float64)[: int(0.8 * len(data))]
    axes = (0, 2, 3)
    arrays = {
        "data": (np.asarray(data, dtype=np.float32), ("time", "variable", "ensemble", "cell")),
        "dates": (np.asarray(dates).astype("datetime64[s]"), ("time",)),
        "latitudes": (latitudes, ("cell",)),
        "longitudes": (longitudes, ("cell",)),
        "mean": (np.nanmean(flat, axes), ("variable",)),
        "stdev": (np.nanstd(flat, axes), ("variable",)),
        "minimum": (np.nanmin(flat, axes), ("variable",)),
        "maximum": (np.nanmax(flat, axes), ("variable",)),
    }
    for name, (values, dimensions) in arrays.items():
        chunks = (1, *values.shape[1:]) if name == "data" else values.shape
        make = group.create_array if versioned else group.create_dataset
        options = {"fill_value": float("nan")} if values.dtype.kind == "f" else {}
        made = make(name, shape=values.shape, chunks=chunks, dtype=values.dtype, **options)
        made[...] = values
        made.attrs["_ARRAY_DIMENSIONS"] = list(dimensions)
    forcings = {v: {"computed_forcing": v == FORCING, "constant_in_time": v in ("z", FORCING)} for v in variables}
    group.attrs.update(
        {
            "variables": list(variables),
            "frequency": "6h",
            "missing_dates": [str(date) for date in missing],
            "field_shape": [len(latitudes)],
            "variables_metadata": {v: {"units": "K", **forcings[v]} for v in variables},
            "constant_fields": [v for v in variables if forcings[v]["constant_in_time"]],
            "uuid": "11111111-2222-3333-4444-555555555555",
            "version": "0.22",
            **attributes,
        }
    )
    return path


def small_graph(latitudes, longitudes, resolution=2, neighbours=3):
    """A graph of data nodes and an icosahedral mesh: encoder from the nearest, decoder to the nearest, with lengths."""
    mesh, lat, lon = icosphere(resolution)
    hidden = torch.deg2rad(torch.stack([lat, lon], dim=1))
    data = torch.deg2rad(torch.from_numpy(np.stack([latitudes, longitudes], axis=1)))
    here, there = (torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], dim=1) for a, b in (data.T, hidden.T))
    distance = torch.cdist(here, there)
    near = distance.argsort(dim=1)[:, :neighbours]
    cells = torch.arange(len(data)).repeat_interleave(neighbours)
    rows = torch.repeat_interleave(torch.arange(mesh.nodes), mesh.indptr.diff())
    ends = {
        ("data", "to", "hidden"): torch.stack([cells, near.flatten()]),
        ("hidden", "to", "hidden"): torch.stack([mesh.indices, rows]),
        ("hidden", "to", "data"): torch.stack([near.flatten(), cells]),
    }
    place = {"data": here, "hidden": there}
    edges = {
        kind: {
            "edge_index": index.to(torch.int32),
            "edge_type": "KNNEdges",
            "edge_length": (place[kind[0]][index[0]] - place[kind[2]][index[1]]).norm(dim=1, keepdim=True).float(),
        }
        for kind, index in ends.items()
    }
    nodes = {
        "data": {"x": data.float(), "node_type": "ZarrDatasetNodes", "area_weight": torch.rand(len(data), 1)},
        "hidden": {"x": hidden.float(), "node_type": "TriNodes"},
    }
    return TypedGraph(nodes, edges)


def attributes_of(path):
    """The attributes of a data set, read as a text."""
    return json.loads((path / ".zattrs").read_text())
