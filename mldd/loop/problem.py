"""What the command line, `compare` and experiments may ask of a problem."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mldd.algebra import Decomposition, FirstLayer, Hierarchy, Objective, SharedDecomposition
from mldd.ranks import SERIAL, Communicator


class Problem:
    """A problem that solvers are run on: what it has to offer, with a default for all but the objective and the start.

    A problem of one's own is a class with ``objective()`` and ``initial(seed)``; it grows by the methods below. The
    fields of a frozen dataclass are keys on the command line. A method that is left as it is here says that the
    problem does not have it: what needs it is refused by name.

    Examples
    --------
    ::

        @dataclass(frozen=True)
        class Rosenbrock(Problem):
            n: int = 10

            def objective(self): ...
            def initial(self, seed=0): ...
    """

    def objective(self) -> Objective:
        """Return what is minimised.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(lacks(self, "objective()"))

    def alone(self) -> Problem | None:
        """Return the problem as a single process has it, None where no process could hold its data.

        By default it is the same but for a field ``comm``.
        """
        if is_dataclass(self) and any(f.name == "comm" for f in fields(self)):
            return replace(self, comm=SERIAL)
        return self

    def initial(self, seed: int = 0) -> Tensor:
        """Return the start, shape (n,).

        Parameters
        ----------
        seed : int
            Of random starts; the same on all ranks.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(lacks(self, "initial(seed)"))

    def decomposition(self, parts: int, overlap: int, comm: Communicator) -> Decomposition | SharedDecomposition:
        """Return the decomposition into overlapping subdomains.

        Parameters
        ----------
        parts : int
            Number of subdomains.
        overlap : int
            Layers that are added to every subdomain on every side.
        comm : Communicator
            The ranks that share the subdomains.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(lacks(self, "decomposition(parts, overlap, comm)"))

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the objective and its models on coarser levels.

        Parameters
        ----------
        levels : int
            Number of levels, the finest one included.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(lacks(self, "hierarchy(levels)"))

    def coarse_hierarchy(self, levels: int, parts: int) -> Hierarchy:
        """Return levels for a solver that decomposes the finest one, by default those of `hierarchy`.

        Parameters
        ----------
        levels : int
            Number of levels, the finest one included.
        parts : int
            Number of subdomains on the finest level.
        """
        return self.hierarchy(levels)

    def first_layer(self) -> FirstLayer:
        """Return the inputs of the network's first layer on this rank, and the places of its weights.

        Raises
        ------
        ValueError
            The problem does not have it: its unknowns are no network, or its first layer is of another kind.
        """
        raise ValueError(lacks(self, "first_layer()"))

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters that suit a solver, by their field names, and ``parts`` and ``overlap``.

        Those of a record or solver in a field have its name in front: ``local.rate``, ``coarse.steps``.

        Parameters
        ----------
        solver : str
            Name on the command line.
        """
        return {}

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return measures of quality other than the objective, by name; all ranks call it together.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        """
        return {}

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return numbers over data that are not trained on, the loss first; all ranks call it together.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.

        Raises
        ------
        ValueError
            The problem does not have it: it has no such data.
        """
        raise ValueError(lacks(self, "validation(x)"))

    def module(self, x: Tensor) -> nn.Module:
        """Return the network with the parameters `x`, to be kept in a file; see `mldd.models.Model`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters.

        Raises
        ------
        ValueError
            The problem does not have it: its unknowns are no network.
        """
        raise ValueError(lacks(self, "module(x)"))

    def array_shape(self) -> tuple[int, ...]:
        """Return the shape of the array that the unknowns are, where they are one: rows and columns of a grid."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return what else ``result.json`` should say of the problem, how it is distributed say."""
        return {}

    def identity(self) -> str:
        """Return a checksum of the data, empty where the fields of the problem say all.

        A run is known by it, and not by the fields `name`, `path`, `folder`, `data` and `reader`, which say where data
        lie.
        """
        return ""

    def fingerprint(self) -> str:
        """Return in a few words which network and loss a run is of; empty where the fields of the problem say all.

        By default it is of a module ``net`` and a function ``loss``, where there is such a module.
        """
        net = getattr(self, "net", None)
        return _known(net, getattr(self, "loss", None)) if isinstance(net, nn.Module) else ""

    def pictures(self, folder: Path, x: Tensor, parts: int) -> Sequence[Path]:
        """Write pictures of the result to `folder` and return their paths; rank 0 calls it.

        Parameters
        ----------
        folder : Path
            It exists.
        x : Tensor, shape (n,)
            The last iterate.
        parts : int
            Number of subdomains of the run.
        """
        return []

    def write_shards(self, part: Tensor, folder: Path) -> None:
        """Write the data part by part, for problems that read a folder of shards.

        Parameters
        ----------
        part : Tensor, shape (nodes,)
            The part of every node of the graph.
        folder : Path
            Where the files go.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(lacks(self, "write_shards(part, folder)"))


def lacks(problem: Problem, method: str) -> str:
    """Return the sentence that a problem does not have a method.

    Parameters
    ----------
    problem : Problem
        The one that was asked.
    method : str
        With its arguments, as in ``hierarchy(levels)``.
    """
    return f"problem {type(problem).__name__} does not have `{method}`"


def has(problem: Problem, method: str) -> bool:
    """Return whether a problem has a method of its own, beyond the default.

    Parameters
    ----------
    problem : Problem
        The one that is asked.
    method : str
        Its name, as in ``hierarchy``.
    """
    return getattr(type(problem), method) is not getattr(Problem, method)


def _known(net: nn.Module, loss: Any) -> str:
    """Return the names of a network and a loss, and a checksum of what its modules say of themselves."""
    shapes = [(name, tuple(p.shape)) for name, p in net.named_parameters()]
    said = re.sub(r" at 0x[0-9a-f]+", "", f"{net!r} {shapes}")  # addresses are others in the next process
    of = getattr(loss, "func", loss)
    named = repr(of) if isinstance(of, nn.Module) else getattr(of, "__name__", "")
    return " ".join([type(net).__name__, hashlib.sha256(said.encode()).hexdigest()[:12], *([named] if named else [])])


def completed(kind: type) -> type[Problem]:
    """Return the class, with the defaults of `Problem` where it is not derived from it.

    Parameters
    ----------
    kind : type
        A class with ``objective()`` and ``initial(seed)``.

    Raises
    ------
    ValueError
        It lacks one of these, or its start takes no seed.
    """
    for method in ("objective()", "initial(seed)"):
        name = method.partition("(")[0]
        if getattr(kind, name, getattr(Problem, name)) is getattr(Problem, name):
            raise ValueError(
                f"a problem must have `{method}`, which {kind.__name__} does not have; add it to the class"
            )
    try:
        inspect.signature(kind.initial).bind(None, 0)  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(
            f"`initial` of {kind.__name__} must take a seed; write def initial(self, seed=0), used or not"
        ) from None
    if issubclass(kind, Problem):
        return kind
    return type(kind.__name__, (kind, Problem), {"__module__": kind.__module__, "__doc__": kind.__doc__})
