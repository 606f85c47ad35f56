"""What readers of files take and return, and how a file that makes no sense is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.loop import UntrustedError, check_fits, check_regular

Array = NDArray[Any]
SPLITS = ("train", "validation", "test")
UNLABELLED = -1  # the label of a node whose class nobody knows


class DataError(ValueError):
    """Say in one line what is wrong with a data set: what was expected, what was found, the way out."""


@dataclass(frozen=True)
class File:
    """Name a file and say what is asked of it.

    Parameters
    ----------
    path : Path
        Of the file, or of the folder where the format is a folder.
    variables : tuple of str
        Variables of a time series that are asked for; empty where the file has only one.
    select : tuple of str
        What is taken along other dimensions than time and place, as in ``("level=850", "number=0")``.
    static : tuple of str
        Fields without time that are asked for, as a land-sea mask.
    """

    path: Path
    variables: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path as text, for messages."""
        return str(self.path)

    def content(self) -> bytes:
        """Return all bytes of the file.

        Raises
        ------
        DataError
            It cannot be read, is a device or a pipe, or does not fit into memory.
        """
        try:
            check_regular(self.path)
            check_fits(self.path.stat().st_size, self.name, "a file")
            return self.path.read_bytes()
        except UntrustedError as error:
            raise DataError(str(error)) from None
        except OSError as error:
            raise DataError(
                f"{self.path}: expected a readable file, got {error.strerror or error}; correct the path"
            ) from None


@dataclass(frozen=True)
class GraphArrays:
    """Hold what a file says about a graph of n nodes.

    Parameters
    ----------
    edge_index : array, shape (2, E), int64
        Ends of the edges, in one direction or in both.
    features : array or csr_matrix, shape (n, F), float64
        One row per node.
    labels : array, shape (n,), int64
        Classes 0, 1, ...; -1 where a node has no label.
    masks : dict or None
        `train`, `validation`, `test`, each an array of bool, shape (splits, n); None: a split is drawn.
    unused : tuple of str
        Names of what else the file holds.
    notes : tuple of str
        What the user should know of the reading, a sentence each.
    edge_weights : array, shape (E,), float64, optional
        Positive weights of the edges.
    edge_attributes : array, shape (E, k), float64, optional
        k numbers of every edge.
    """

    edge_index: Array
    features: Any
    labels: Array
    masks: dict[str, Array] | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    edge_weights: Array | None = None
    edge_attributes: Array | None = None


@dataclass(frozen=True, eq=False)
class Supplement:
    """Hold what a file gives beside values and coordinates.

    Parameters
    ----------
    static : dict of str to array
        Fields that do not change in time, one number per node, or laid out as the nodes are in the file.
    mean, deviation : array, shape (V,), optional
        By which the variables are to be normalised, instead of their own over the training part.
    graph : Graph, optional
        Of the nodes (roads), instead of one from coordinates.
    area : array, shape (n,), optional
        Areas of the nodes, in any unit, where they are some of the cells of a grid.
    known : dict of str to array, shape (T, n)
        Covariates that are known about the future, too, as what another model has forecast.
    outer : array, shape (n,), bool, optional
        Nodes at the boundary of a region, whose values another model knows ahead: inputs, not to be forecast.
    attributes : dict of str to dict
        What the file says of its variables: ``standard_name``, ``long_name``, ``cell_methods``.
    """

    static: Mapping[str, Array] = field(default_factory=dict)
    mean: Array | None = None
    deviation: Array | None = None
    graph: Graph | None = None
    area: Array | None = None
    known: Mapping[str, Array] = field(default_factory=dict)
    outer: Array | None = None
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def of_nodes(self, kept: Array) -> Supplement:
        """Return what belongs to some of the nodes.

        Parameters
        ----------
        kept : array, shape (n,)
            Their numbers, or a mask.
        """
        area, outer = (None if of is None else of[kept] for of in (self.area, self.outer))
        static = {name: of.ravel()[kept] for name, of in self.static.items()}
        known = {name: of[:, kept] for name, of in self.known.items()}
        return replace(self, static=static, area=area, known=known, outer=outer)

    def of_variables(self, index: list[int]) -> Supplement:
        """Return what belongs to some of the variables.

        Parameters
        ----------
        index : list of int
            Their numbers.
        """
        mean, deviation = (None if of is None else of[index] for of in (self.mean, self.deviation))
        return replace(self, mean=mean, deviation=deviation)


@dataclass(frozen=True)
class SeriesArrays:
    """Hold what a file says about a time series on a grid or on stations.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Times; in another calendar than the standard one the first is a date and the others follow by elapsed seconds.
    latitude, longitude : array, shapes (R,) and (C,), or (n,), or (R, C)
        Degrees, of the rows and columns of a grid, of all stations, or of all nodes of a curvilinear grid.
    variables : dict of str to array, shape (T, R, C) or (T, n)
        Values by name, NaN where one is missing.
    units : dict of str to str
        Of the variables, where they are known.
    altitude : array, optional
        Metres, one per node.
    calendar : str
        As the CF conventions name it: standard, noleap, all_leap, 360_day.
    unused : tuple of str
        Names of what else the file holds.
    notes : tuple of str
        What the user should know of the reading, a sentence each.
    supplement : Supplement
        Static fields and statistics of the variables, where the file has them.
    """

    time: Array
    latitude: Array
    longitude: Array
    variables: dict[str, Array]
    units: Mapping[str, str] = field(default_factory=dict)
    altitude: Array | None = None
    calendar: str = "standard"
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    supplement: Supplement = Supplement()  # noqa: RUF009 (frozen)


class Reader(Protocol):
    """Reads a file of one format; its return annotation says whether that is a graph or a time series.

    A reader of both kinds has a function ``holds(path)`` beside it, which returns ``"graph"`` or ``"series"``.
    """

    def __call__(self, file: File) -> GraphArrays | SeriesArrays:
        """Return the arrays of a file.

        Parameters
        ----------
        file : File
            Which one, and what is asked of it.

        Raises
        ------
        DataError
            It holds something else.
        """


def one_line(error: BaseException) -> str:
    """Return an error of a library in one line of at most 160 letters.

    Parameters
    ----------
    error : BaseException
        What was raised.
    """
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}" if words else type(error).__name__


def unused_note(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sentence that names what a file holds and nobody uses, none where there is nothing.

    Parameters
    ----------
    names : tuple of str
        Arrays, variables or fields of the file.
    """
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (f"not used: {shown}",) if names else ()


def checksum(*arrays: Array) -> str:
    """Return the SHA-256 of shapes, types and entries of arrays.

    Parameters
    ----------
    *arrays : array
        Of numbers.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def notes_of_edges(raw: GraphArrays) -> list[str]:
    """Return what becomes of edges in a graph that is symmetric, without loops and duplicates, a sentence each.

    Parameters
    ----------
    raw : GraphArrays
        Of a file.
    """
    nodes, (row, column) = len(raw.labels), raw.edge_index
    ends = row * nodes + column
    loops, twice = int((row == column).sum()), len(ends) - len(np.unique(ends))
    alone = int((~np.isin(ends, column * nodes + row)).sum())
    notes = []
    if alone:
        notes.append(f"{alone} of {len(ends)} edges go one way only and were taken both ways")
    if loops:
        notes.append(f"{loops} edges from a node to itself were left out: layers that want them add their own")
    if twice:
        what = "their weights were added" if raw.edge_weights is not None else "they count once"
        notes.append(f"{twice} edges were there before: {what}")
    if raw.edge_weights is not None:
        there = sp.csr_matrix((raw.edge_weights, (row, column)), shape=(nodes, nodes))
        unlike = int(((there != there.T).multiply(there > 0).multiply(there.T > 0)).nnz) // 2
        if unlike:
            notes.append(f"weights of {unlike} edges differ in their two directions: the larger is taken")
    return notes
