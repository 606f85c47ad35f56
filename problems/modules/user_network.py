"""Networks that the command line names by class: ``mldd train graph.pt:model=net.py:Net,hidden=64``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mldd.algebra import FirstLayer, Hierarchy
from mldd.loop import Problem
from mldd.models import Field, Prediction, about, load
from mldd.problems.data import graph_fields, many_graphs
from mldd.problems.modules.graph_samples import GraphSamples
from mldd.problems.modules.one_graph import Division, GraphProblem, arguments_of, nodes_of, task_of
from mldd.problems.modules.supervised_problem import SupervisedProblem
from mldd.problems.modules.user_modules import first_parameter
from mldd.ranks import SERIAL, Communicator

# Parameters of a constructor that the data say, by their usual names.
_INPUTS = ("inputs", "in_channels", "in_features", "in_dim", "input_dim", "num_features", "nfeat", "features")
_OUTPUTS = ("classes", "outputs", "out_channels", "out_features", "out_dim", "output_dim", "num_classes", "nclass")
_OF_EDGES = ("edge_dim", "edge_features", "num_edge_features", "edge_channels")
_SAID = (*_INPUTS, *_OUTPUTS, *_OF_EDGES)


@dataclass(frozen=True)
class UserNetwork(Problem):
    """Train a network class of one's own on a graph in a file, as `GraphProblem` does, or on many, `SupervisedProblem`.

    A file of many graphs has a list of them, or lists by the names train, validation and test.

    Parameters
    ----------
    name : str
        A file with a graph or with several, or the name of one.
    model : str
        The class, as ``file.py:Class`` or ``package.module:Class``.
    inputs : tuple of str
        Fields that ``forward`` takes, in its order; by default those that its parameters are named after.
    groups : tuple of str
        Names of modules that are one layer together; by default every module is a layer.
    division : Division
        Subdomains, coarse graphs and the shares of ranks. Of many graphs, which are divided into subdomains alone,
        "graph" means parts of them, and "both" a subdomain per part and layer.
    labels : {"train", "all"}
        Fit to the training nodes, or to all that are not for testing.
    batch : int
        Labelled nodes, or graphs, per gradient; 0: all.
    seed : int
        Of the network's start, dropout, mini-batches and partitions.
    data : str, optional
        Folder of the data sets.
    dtype : {"float32", "float64"}
        Of the network and the features.
    device : {"cpu", "cuda", "auto"}
        Where it is evaluated.
    comm : Communicator
        Ranks that share the nodes, or the graphs.

    Raises
    ------
    ValueError
        A network that cannot be made from what the data and the keys say.
    """

    name: str = ""
    model: str = ""
    inputs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    division: Division = Division()
    labels: Literal["train", "all"] = "train"
    batch: int = 0
    seed: int = 0
    data: str | os.PathLike[str] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    comm: Communicator = SERIAL
    class_: ClassVar[type[nn.Module]]

    @cached_property
    def _graphs(self) -> Any:
        """The graphs of a file that has several, None for one."""
        return many_graphs(self.name)

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The fields of the graph, or of the first of many."""
        if self._graphs is None:
            return graph_fields(self.name, data=self.data)
        first = _all(self._graphs)[0]
        return dict(first if isinstance(first, Mapping) else first.to_dict())

    @cached_property
    def problem(self) -> GraphProblem | SupervisedProblem:
        """The problem around the network.

        Raises
        ------
        ValueError
            Something that the constructor needs is said by neither the data nor the keys, or a key that many graphs
            have no use for.
        """
        net = self._network()
        own = {key: getattr(self, key) for key in ("inputs", "groups", "batch", "seed", "device", "comm")}
        if self._graphs is None:
            return GraphProblem(net, self._fields, division=self.division, labels=self.labels, **own)
        chosen = self.division.subdomains
        of_one = {"labels": self.labels, **vars(self.division)}
        defaults = {"labels": "train", **vars(Division(subdomains=chosen))}
        for key, value in of_one.items():
            if value != defaults[key]:
                raise ValueError(f"`{key}` is for one graph, got {value!r} with several; leave it out")
        return SupervisedProblem(net, self._graphs, subdomains="data" if chosen == "graph" else chosen, **own)

    def _network(self, labels: bool = True) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return self.class_(**self._constructed(self._outputs if labels else lambda: 0)).to(
                getattr(torch, self.dtype)
            )

    def _constructed(self, outputs: Callable[[], int]) -> dict[str, Any]:
        """Return the arguments of the constructor; `outputs` returns their number, 0 where nobody knows it."""
        given = {f.name: getattr(self.network, f.name) for f in fields(self.network)}  # type: ignore[attr-defined]
        given = {key: value for key, value in given.items() if value is not None}
        asked = [key for key in inspect.signature(self.class_).parameters if key not in given]
        values = _said(self._fields, asked, outputs) | given
        for name, parameter in _parameters(self.class_).items():
            if parameter.default is parameter.empty and name not in values:
                raise ValueError(f"{self.class_.__name__} needs `{name}`; write {name}=VALUE")
        return values

    def _outputs(self) -> int:
        """Return how many outputs the labels ask for, 0 where they do not say."""
        if self._graphs is not None:
            task = GraphSamples.of(_all(self._graphs)).task
        else:
            task = task_of(self._fields, nodes_of(self._fields))
        rows = task.targets
        if task.kind == "links":
            return 0
        return int(rows.max()) + 1 if task.kind == "classification" else rows.shape[1] if rows.dim() > 1 else 1

    def objective(self) -> Any:
        """Return the loss."""
        return self.problem.objective()

    def initial(self, seed: int = 0) -> Tensor:
        """Return the parameters that the network is made with, with torch's generator seeded, shape (N,)."""
        return self.problem.initial(0)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss on coarser graphs."""
        return self.problem.hierarchy(levels)

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Any:
        """Return the decomposition."""
        return self.problem.decomposition(parts, overlap, comm)

    def first_layer(self) -> FirstLayer:
        """Return the inputs of the first linear map."""
        return self.problem.first_layer()

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters that suit."""
        return self.problem.settings(solver)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return numbers over the validation nodes."""
        return self.problem.validation(x)

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return measures of quality."""
        return self.problem.metrics(x)

    def module(self, x: Tensor) -> nn.Module:
        """Return the trained network."""
        return self.problem.module(x)

    def details(self) -> dict[str, Any]:
        """Return what the network is called with, and what of the data is not used."""
        return self.problem.details()

    def identity(self) -> str:
        """Return the checksum of the data."""
        return self.problem.identity()

    def prediction(self, model: Path) -> Prediction:
        """Return what a trained network returns for the data, in evaluation mode; labels are not looked at.

        Parameters
        ----------
        model : Path
            What a run has kept, or its folder.

        Raises
        ------
        ValueError
            The parameters of another network, or data that it cannot be called with.
        """
        net = self._network(labels="y" in self._fields)
        load(model, net)
        with torch.no_grad():
            if self._graphs is None:
                arguments = arguments_of(net, self._fields, self.inputs, first_parameter(net).device)
                if trained := about(model).get("details", {}).get("arguments"):
                    arguments = replace(arguments, names=tuple(trained)).alike(arguments)
                return _predicted(arguments.call(net, arguments.whole), "node", self.name, ())
            parts = tuple(self._graphs) if isinstance(self._graphs, Mapping) else ()
            samples = GraphSamples.of(_all(self._graphs), net, self.inputs)
            made = samples.to(first_parameter(net)).predicted(net)
        notes = (f"graphs for {', '.join(parts)}, one after the other",) if len(parts) > 1 else ()
        return _predicted(made, "graph" if len(made) == len(samples) else "node", self.name, notes)


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


def _said(given: Mapping[str, Any], asked: Collection[str], outputs: Callable[[], int]) -> dict[str, Any]:
    """Return what the data say of some parameters of a constructor."""
    x, edges = given.get("x"), given.get("edge_attr")
    if any(name in asked for name in _INPUTS) and not isinstance(x, Tensor):
        raise ValueError(
            f"`data` must have features x, got {' '.join(given)}; add them, say one-hot numbers or degrees"
        )
    sizes: dict[str, Any] = dict.fromkeys(_INPUTS, None if x is None else x.shape[1] if x.dim() > 1 else 1)
    sizes |= dict.fromkeys(_OF_EDGES, None if edges is None else edges.shape[1] if edges.dim() > 1 else 1)
    if any(name in asked for name in _OUTPUTS):
        count = outputs()
        sizes |= dict.fromkeys(_OUTPUTS, count) if count else {}
    return {name: size for name, size in sizes.items() if name in asked}


def _all(graphs: Any) -> list[Any]:
    """Return the graphs of a file, whatever they are for."""
    return [graph for part in graphs.values() for graph in part] if isinstance(graphs, Mapping) else graphs


def _predicted(made: Tensor, what: str, name: str, notes: tuple[str, ...]) -> Prediction:
    """Return outputs as a prediction, a row per node or graph."""
    numbers = np.arange(len(made))
    dims = (what, "output")[: made.dim()]
    return Prediction(
        {"output": Field(dims, made.cpu().numpy(), {"long_name": f"what the network returns for the {what}"})},
        {what: Field((what,), numbers, {"long_name": f"number of the {what} in the data"})},
        (what,),
        {"title": f"outputs for the {what}s of {name}"},
        notes,
    )
