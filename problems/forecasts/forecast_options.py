"""Options of forecasting problems: what is read of a file, which nodes are neighbours, and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mldd.algebra import check_choices, check_least


@dataclass(frozen=True)
class Links:
    """Which nodes are neighbours.

    Parameters
    ----------
    edges : {"auto", "knn", "radius", "grid", "mesh"}
        From coordinates, see `mldd.problems.data.geography.connect`; auto: the graph that comes with the series, that
        of a grid, or nearest neighbours.
    neighbours : int
        Of every node: nearest ones, 4 or 8 on a grid.
    radius : float
        Kilometres.
    weighted : bool
        Whether the weights of edges enter the propagation (sage, gcn).

    Raises
    ------
    ValueError
        Values out of range.
    """

    edges: Literal["auto", "knn", "radius", "grid", "mesh"] = "auto"
    neighbours: int = 8
    radius: float = 100.0
    weighted: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"edges": ("auto", "knn", "radius", "grid", "mesh")})


@dataclass(frozen=True)
class Reading:
    """What is taken of the file of a series, and how.

    Parameters
    ----------
    variable : tuple of str
        Variables of the file; all of them are inputs and outputs.
    stations : int
        Of `molene`: 37 or 46 (with gaps).
    gaps : {"mask", "refuse"}
        Leave missing values out, or refuse a series that has any.
    select : tuple of str
        What is taken along other dimensions than time and place: ``level=850``, ``number=0``.
    static, known : tuple of str
        Fields of a file that become inputs: those without time, and those that are known about the future, too.
    boundary : int
        Outer rows and columns of a region that are inputs, also at the time of the forecast, and are not forecast.
    missing : float, optional
        The value that stands for a missing one, 0 in many files of traffic.
    sort : bool
        Sort the times of a file.
    reader : str
        Of a file, where its suffix does not say it: a suffix, ``file.py:function`` or ``package.module:function``.

    Raises
    ------
    ValueError
        Values out of range.
    """

    variable: tuple[str, ...] = ()
    stations: int = 37
    gaps: Literal["mask", "refuse"] = "mask"
    select: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    boundary: int = 0
    missing: float | None = None
    sort: bool = False
    reader: str = ""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"gaps": ("mask", "refuse")})
        check_least(self, {"boundary": 0})


@dataclass(frozen=True)
class ForecastSpaces:
    """What the subdomains and coarse levels of a forecasting problem are made of.

    Parameters
    ----------
    clusters : int
        Nodes of the first coarse graph, and clusters of a composite graph; 0: 3.7 % of the nodes.
    local : {"composite", "own", "restricted"}
        Local models of subdomains: composite graphs; the loss of the own nodes with all nodes that it depends on, where
        an overlap adds to the own nodes; or that of the own nodes on the graph between these and the overlap.

    Raises
    ------
    ValueError
        Values out of range.
    """

    clusters: int = 0
    local: Literal["composite", "own", "restricted"] = "composite"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"local": ("composite", "own", "restricted")})
        check_least(self, {"clusters": 0})


@dataclass(frozen=True)
class Batches:
    """Samples that are evaluated together.

    Parameters
    ----------
    batch : int
        Samples per gradient, drawn anew for every step; 0: all.
    chunk : int
        Samples that are evaluated at once, which bounds memory; 0: all.
    shares : int
        Shares of the samples in a decomposition, which has a subdomain for every pair of a part and a share.

    Raises
    ------
    ValueError
        Values out of range.
    """

    batch: int = 0
    chunk: int = 64
    shares: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_least(self, {"batch": 0, "chunk": 0, "shares": 1})
