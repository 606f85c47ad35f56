"""Options of problems with physics-informed networks: what names stand for, network, windows, right-hand side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mldd.algebra import check_choices


@dataclass(frozen=True)
class Preset:
    """What a name of the command line stands for where the user sets nothing else.

    Parameters
    ----------
    network : {"dense", "residual"}
        Kind of the network.
    depth, width : int
        Layers with parameters, the linear last one included, and neurons of the hidden ones.
    points : int
        Collocation points.
    rate : float
        Of Adam.
    local_steps : int
        Of L-BFGS on a subdomain, one subdomain per layer.
    grid : tuple of int
        Test points along each coordinate.
    """

    network: Literal["dense", "residual"]
    depth: int
    width: int
    points: int
    rate: float
    local_steps: int
    grid: tuple[int, ...]


# All but poisson1d: table 1 of arXiv 2306.17648.
PRESETS = {
    "poisson1d": Preset("dense", 9, 20, 102, 3e-3, 10, (501,)),
    "burgers": Preset("residual", 8, 20, 10_000, 5e-4, 50, (200, 400)),
    "diffusion-advection": Preset("residual", 10, 50, 10_000, 1e-4, 10, (200, 200)),
    "klein-gordon": Preset("residual", 6, 50, 10_000, 1e-3, 50, (200, 400)),
    "allen-cahn": Preset("residual", 6, 64, 10_000, 2.5e-4, 50, (200, 400)),
}


def check_least_or_default(record: Any, bounds: dict[str, int]) -> None:
    """Refuse a field that is neither 0, for the default, nor at least its bound.

    Parameters
    ----------
    record : dataclass
        What is checked.
    bounds : dict of str to int
        Least value of each field.

    Raises
    ------
    ValueError
        A field below its bound.
    """
    for key, least in bounds.items():
        if getattr(record, key) != 0 and getattr(record, key) < least:
            raise ValueError(f"`{key}` must be >= {least} (or 0 for the default), got {getattr(record, key)}")


@dataclass(frozen=True)
class Architecture:
    """The network of a `PhysicsInformed` problem; zeros take what suits the equation.

    Parameters
    ----------
    kind : {"auto", "dense", "residual"}
        A plain tanh network, or a residual one with trainable slopes; ``auto`` is dense for poisson1d and windows.
    depth, width : int
        Layers with parameters (the linear last one included) and neurons of a hidden layer; 0 takes those of table 1 of
        arXiv 2306.17648, and for poisson1d 8 hidden layers of 20 neurons (3,001 parameters). Windows have 2 hidden
        layers of 32 neurons by default.
    horizon : float
        The "time" T that the residual layers span.

    Raises
    ------
    ValueError
        Values out of range.
    """

    kind: Literal["auto", "dense", "residual"] = "auto"
    depth: int = 0
    width: int = 0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"kind": ("auto", "dense", "residual")})
        check_least_or_default(self, {"depth": 2, "width": 1})


@dataclass(frozen=True)
class Windows:
    """The windows of a `PhysicsInformed` problem.

    Parameters
    ----------
    count : int or str
        Windows along the first coordinate, or along each, as in ``"2x3"``; the outermost ones are centred at the ends.
        0 takes 4.
    ratio : float
        Width of the windows over the distance between their centres, > 1.
    coarse : bool
        Add a network of the whole domain to those of the windows; it is a subdomain of its own, the last one.

    Raises
    ------
    ValueError
        Windows that do not overlap.
    """

    count: int | str = 0
    ratio: float = 1.5
    coarse: bool = False

    def __post_init__(self) -> None:
        """Refuse windows that do not overlap."""
        if not 1 < self.ratio < math.inf:
            raise ValueError(f"`ratio` must be > 1 (windows that overlap), got {self.ratio}")


@dataclass(frozen=True)
class Poisson:
    """What only poisson1d can be asked for.

    Parameters
    ----------
    frequency : float
        The w of the right-hand side ``sin(pi w x)``.
    unit : bool
        Multiply the right-hand side by ``(pi w)^2``, so that the solution has amplitude 1.
    boundary : {"hard", "soft"}
        Conditions built into the network; or a network without, whose squared errors at the two ends count like two of
        the residuals.

    Raises
    ------
    ValueError
        Values out of range.
    """

    frequency: float = 1.0
    unit: bool = False
    boundary: Literal["hard", "soft"] = "hard"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"boundary": ("hard", "soft")})
        if not 0 < self.frequency < math.inf:
            raise ValueError(f"`frequency` must be > 0, got {self.frequency}")
