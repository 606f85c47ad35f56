"""Keys of an operator-learning problem, in groups: network, samples, and what is decomposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mldd.algebra import check_choices, check_least
from mldd.problems.operators.local_graphs import Cut


@dataclass(frozen=True)
class NetworkOptions:
    """The network.

    Parameters
    ----------
    hidden : int
        Width of the states.
    layers : int
        Number of layers; an output depends on so many rings of neighbours.
    """

    hidden: int = 24
    layers: int = 4


@dataclass(frozen=True)
class SampleOptions:
    """Which samples are trained on.

    Parameters
    ----------
    samples : int
        Size of a fixed training set; 0: every step sees new samples, and the loss that is shown is that over the first
        eight batches.
    batch : int
        Samples of a step, of all ranks and subdomains together.
    validated : int
        Samples for validation, from a stream of their own.
    leads : int
        Intervals of a rollout.

    Raises
    ------
    ValueError
        A number out of range.
    """

    samples: int = 0
    batch: int = 8
    validated: int = 48
    leads: int = 10

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_least(self, {"samples": 0, "batch": 1, "validated": 1, "leads": 1})
        if 0 < self.samples < self.batch:
            raise ValueError(f"`batch` must be in 1..{self.samples} (the samples), got {self.batch}")

    @property
    def shown(self) -> int:
        """Samples over which the whole objective is the loss."""
        return self.samples or 8 * self.batch


@dataclass(frozen=True)
class CutOptions:
    """What is decomposed, and what ranks share where nothing is.

    Parameters
    ----------
    subdomains : {"samples", "parts", "both"}
        Shares of every batch, parts of the graph with rings of neighbours around them, or shares of every part.
    shares : int
        Shares of every part, for subdomains=both.
    cut : {"auto", "rectangles", "metis"}
        How the graph is cut; auto: into rectangles on a torus, by METIS elsewhere.
    sharing : {"samples", "nodes"}
        What ranks share in an evaluation of the whole: the samples, or the nodes with an exact halo.

    Raises
    ------
    ValueError
        An unknown word, or fewer than one share.
    """

    subdomains: Literal["samples", "parts", "both"] = "samples"
    shares: int = 2
    cut: Cut = "auto"
    sharing: Literal["samples", "nodes"] = "samples"

    def __post_init__(self) -> None:
        """Refuse unknown words."""
        check_choices(self, _CHOICES)
        check_least(self, {"shares": 1})


_CHOICES = {
    "subdomains": ("samples", "parts", "both"),
    "cut": ("auto", "rectangles", "metis"),
    "sharing": ("samples", "nodes"),
}
