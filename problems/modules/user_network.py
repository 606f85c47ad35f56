"""Networks that the command line names by class: ``mldd train graph.pt:model=net.py:Net,hidden=64``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mldd.algebra import Hierarchy
from mldd.loop import Problem
from mldd.problems.data import checksum, graph_fields
from mldd.problems.modules.graph_arguments import nodes_of
from mldd.problems.modules.graph_problem import GraphProblem
from mldd.problems.modules.graph_task import task_of
from mldd.ranks import SERIAL, Communicator

# Parameters of a constructor that the data say, by their usual names.
_INPUTS = ("inputs", "in_channels", "in_features", "in_dim", "input_dim", "num_features", "nfeat", "features")
_OUTPUTS = ("classes", "outputs", "out_channels", "out_features", "out_dim", "output_dim", "num_classes", "nclass")
_OF_EDGES = ("edge_dim", "edge_features", "num_edge_features", "edge_channels")
_SAID = (*_INPUTS, *_OUTPUTS, *_OF_EDGES)


@dataclass(frozen=True)
class UserNetwork(Problem):
    """Train a network class of one's own on a graph in a file; the rest is as for `GraphProblem`.

    Parameters
    ----------
    name : str
        A file with a graph, or the name of one.
    model : str
        The class, as ``file.py:Class`` or ``package.module:Class``.
    inputs : tuple of str
        Fields that ``forward`` takes, in its order; by default those that its parameters are named after.
    groups : tuple of str
        Names of modules that are one layer together; by default every module is a layer.
    subdomains : {"graph", "layers"}
        What is decomposed.
    local : {"composite", "own"}
        Local models of graph parts.
    clusters : int
        Nodes of the first coarse graph; 0: 3.7 % of the nodes.
    halo : {"auto", "deep", "exchange"}
        On several ranks: halos as deep as outputs reach, or of one layer that are exchanged.
    labels : {"train", "all"}
        Fit to the training nodes, or to all that are not for testing.
    batch : int
        Labelled nodes per gradient; 0: all.
    seed : int
        Of the network's start, dropout, mini-batches and partitions.
    data : str, optional
        Folder of the data sets.
    dtype : {"float32", "float64"}
        Of the network and the features.
    device : {"cpu", "cuda", "auto"}
        Where it is evaluated.
    comm : Communicator
        Ranks that share the nodes.

    Raises
    ------
    ValueError
        A network that cannot be made from what the data and the keys say.
    """

    name: str = ""
    model: str = ""
    inputs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    subdomains: Literal["graph", "layers"] = "graph"
    local: Literal["composite", "own"] = "composite"
    clusters: int = 0
    halo: Literal["auto", "deep", "exchange"] = "auto"
    labels: Literal["train", "all"] = "train"
    batch: int = 0
    seed: int = 0
    data: str | os.PathLike[str] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    comm: Communicator = SERIAL
    class_: ClassVar[type[nn.Module]]

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return graph_fields(self.name, data=self.data)

    @cached_property
    def graph_problem(self) -> GraphProblem:
        """The problem around the network.

        Raises
        ------
        ValueError
            Something that the constructor needs is said by neither the data nor the keys.
        """
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            net = self.class_(**self._constructed()).to(getattr(torch, self.dtype))
        own = ("inputs", "groups", "subdomains", "local", "clusters", "halo", "labels", "batch", "seed")
        return GraphProblem(net, self._fields, **{key: getattr(self, key) for key in (*own, "device", "comm")})

    def _constructed(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        given = {f.name: getattr(self.network, f.name) for f in fields(self.network)}  # type: ignore[attr-defined]
        said = _said(self._fields, inspect.signature(self.class_).parameters)
        values = said | {key: value for key, value in given.items() if value is not None}
        for name, parameter in _parameters(self.class_).items():
            if parameter.default is parameter.empty and name not in values:
                raise ValueError(f"{self.class_.__name__} needs `{name}`; write {name}=VALUE")
        return values

    def objective(self) -> Any:
        """Return the loss."""
        return self.graph_problem.objective()

    def initial(self, seed: int = 0) -> Tensor:
        """Return the parameters that the network is made with, with torch's generator seeded, shape (N,)."""
        return self.graph_problem.initial(0)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss on coarser graphs."""
        return self.graph_problem.hierarchy(levels)

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Any:
        """Return the decomposition."""
        return self.graph_problem.decomposition(parts, overlap, comm)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters that suit."""
        return self.graph_problem.settings(solver)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return numbers over the validation nodes."""
        return self.graph_problem.validation(x)

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return measures of quality."""
        return self.graph_problem.metrics(x)

    def module(self, x: Tensor) -> nn.Module:
        """Return the trained network."""
        return self.graph_problem.module(x)

    def details(self) -> dict[str, Any]:
        """Return what the network is called with, and what of the data is not used."""
        return self.graph_problem.details()

    def identity(self) -> str:
        """Return the checksum of the data."""
        tensors = (v for _, v in sorted(self._fields.items()) if isinstance(v, Tensor))
        return checksum(*(v.detach().cpu().contiguous().numpy() for v in tensors))


def kind_of(kind: type[nn.Module]) -> type[UserNetwork]:
    """Return the class of problems around a class of networks: the parameters of its constructor are keys.

    Parameters
    ----------
    kind : type
        The class; what it calls inputs, outputs or classes, and edge_dim, is taken from the data where no key says it.

    Returns
    -------
    type
        A subclass of `UserNetwork` with a record ``network``.
    """
    made = []
    for name, parameter in _parameters(kind).items():
        known = name not in _SAID and parameter.default is not parameter.empty and parameter.default is not None
        default = parameter.default if known else None
        made.append((name, type(default) if known else int | float | str | None, field(default=default)))
    record = make_dataclass(f"{kind.__name__}Options", made, frozen=True)
    record.__module__ = __name__
    new: type[UserNetwork] = make_dataclass(
        kind.__name__,
        [("network", record, field(default=record()))],
        bases=(UserNetwork,),
        frozen=True,
        namespace={"class_": kind, "__doc__": f"{kind.__name__} on a graph.\n\n{UserNetwork.__doc__}"},
    )
    new.__module__ = __name__
    new.__annotations__["network"] = record
    return new


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a constructor."""
    every = inspect.signature(kind).parameters.items()
    return {name: p for name, p in every if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _said(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the data say of the parameters of a constructor."""
    x, edges = given.get("x"), given.get("edge_attr")
    if any(name in parameters for name in _INPUTS) and not isinstance(x, Tensor):
        raise ValueError(
            f"`data` must have features x, got {' '.join(given)}; add them, say one-hot numbers or degrees"
        )
    sizes: dict[str, Any] = dict.fromkeys(_INPUTS, None if x is None else x.shape[1] if x.dim() > 1 else 1)
    sizes |= dict.fromkeys(_OF_EDGES, None if edges is None else edges.shape[1] if edges.dim() > 1 else 1)
    if any(name in parameters for name in _OUTPUTS):
        task = task_of(given, nodes_of(given))
        if task.kind != "links":
            rows = task.targets
            count = int(rows.max()) + 1 if task.kind == "classification" else rows.shape[1] if rows.dim() > 1 else 1
            sizes |= dict.fromkeys(_OUTPUTS, count)
    return {name: size for name, size in sizes.items() if name in parameters}
