"""Files of the GraphData repository: SciPy matrices pickled into arrays of objects, read without trust."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from mldd.problems.data import DataError, GraphArrays, one_line
from mldd.problems.data.formats.checks import checked_edges, checked_labels
from mldd.problems.data.formats.pickles import matrix_of, unpickle


def read_graphdata(content: bytes, where: str) -> GraphArrays:
    """Return the graph in a `.npz` whose matrices are pickled.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        It is another file, or asks for anything but arrays.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(f"{name}.npy") for name in ("adj_matrix", "node_attr", "node_label")}
        stream = {name: io.BytesIO(member) for name, member in members.items()}
        for name in ("adj_matrix", "node_attr"):
            np.lib.format.read_magic(stream[name])
            np.lib.format.read_array_header_1_0(stream[name])
        labels = np.load(stream["node_label"], allow_pickle=False)
    except Exception as error:  # zip, zlib, header parser: each has its own exceptions
        raise DataError(f"{where}: expected a file of GraphData, got {one_line(error)}; get it anew") from None
    boxes = {name: unpickle(stream[name].read(), where) for name in ("adj_matrix", "node_attr")}
    try:
        adjacency, features = (matrix_of(boxes[name].item(), where) for name in ("adj_matrix", "node_attr"))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: expected pickled CSR matrices, got {one_line(error)}; get it anew") from None
    nodes = int(features.shape[0])
    edges = checked_edges(np.stack(adjacency.nonzero()), nodes, where)
    return GraphArrays(edges, features, checked_labels(labels, nodes, where))
