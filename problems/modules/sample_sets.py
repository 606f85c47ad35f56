"""Samples for training, validation and test: given by name, or divided by numbers; and what they weigh in a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldd.problems.data import SPLITS
from mldd.problems.modules.graph_samples import GraphSamples, are_graphs
from mldd.problems.modules.samples import Samples
from mldd.problems.modules.user_modules import weights_of
from mldd.ranks import Communicator


def reader_of(data: Any, net: nn.Module, inputs: Sequence[str], seed: int) -> Callable[[Any], Samples | GraphSamples]:
    """Return what reads data of the same kind as those of a training.

    Parameters
    ----------
    data : object
        Those of the training: tensors, a data set, a loader, graphs, or several of them by name.
    net : nn.Module
        What graphs are given to.
    inputs : sequence of str
        Fields of graphs that it takes.
    seed : int
        Of data that are drawn.

    Raises
    ------
    ValueError
        Fields of graphs, where there are none.
    """
    if hold_graphs(data):
        return lambda given: GraphSamples.of(given, net, inputs)
    if inputs:
        raise ValueError(f"`inputs` names fields of graphs, got {tuple(inputs)} with other samples; leave it out")
    return lambda given: Samples.of(given, seed)


def hold_graphs(data: Any) -> bool:
    """Return whether data are several graphs, or several of them by name.

    Parameters
    ----------
    data : object
        Of any kind.
    """
    return are_graphs(data["train"] if is_divided(data) else data)


def weights_in(loss: Callable[..., Tensor] | None, samples: Any) -> Tensor | None:
    """Return what samples weigh in a mean loss, shape (n,), None where they count alike or nothing is known of it.

    Parameters
    ----------
    loss : callable, optional
        ``loss(outputs, targets)``, or that of the labels of graphs.
    samples : Samples or GraphSamples
        With targets.
    """
    if loss is None:
        weights: Tensor = samples.weights
        return weights
    if samples.in_batches:
        return None
    found: Tensor | None = samples.summed(weights_of(loss, samples.targets(samples.take(torch.arange(len(samples))))))
    return found


def same_on_all_ranks(comm: Communicator, mine: tuple[Any, ...]) -> None:
    """Refuse ranks with other modules or data.

    Parameters
    ----------
    comm : Communicator
        The ranks, which call it together.
    mine : tuple
        What is known of module and data here.

    Raises
    ------
    ValueError
        A rank has something else.
    """
    if comm.ranks > 1:
        for rank, theirs in enumerate(comm.gather_items(mine)):
            if theirs != mine:
                raise ValueError(
                    f"all ranks must have the same module and data, got others on rank {rank} than on rank "
                    f"{comm.rank}; make them with the same seed and leave sharing them out to the problem"
                )


def is_divided(data: Any) -> bool:
    """Return whether data are those for train, validation and test by name.

    Parameters
    ----------
    data : object
        Of any kind.
    """
    return isinstance(data, Mapping) and "train" in data and set(data) <= set(SPLITS)


def divided(data: Any, split: Mapping[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the samples for train, and for validation and test as far as there are any.

    Parameters
    ----------
    data : object
        Of any kind, or several by name.
    split : mapping of str to Tensor
        Numbers of samples, or masks; what none of them has is for training, unless it says so itself.
    read : callable
        ``read(data)`` returns samples.

    Raises
    ------
    ValueError
        Another name, numbers that there are none of or several times, or both data by name and a split.
    """
    if is_divided(data):
        if split:
            raise ValueError(f"`split` divides data, got {' '.join(split)} with data that are divided; leave it out")
        return {name: read(data[name]) for name in SPLITS if data.get(name) is not None}
    if isinstance(data, Mapping) and "train" in data:
        raise ValueError(f"data by name must be those for {', '.join(SPLITS)}, got {' '.join(map(str, data))}")
    samples = read(data)
    n = len(samples)
    chosen = {name: _numbers(name, which, n) for name, which in split.items()}
    given = torch.cat(list(chosen.values())) if chosen else torch.zeros(0)
    if len(torch.unique(given)) < len(given):
        raise ValueError(f"`split` must name every sample once, got one for several of {', '.join(chosen)}")
    if "train" not in chosen:
        others = torch.ones(n, dtype=torch.bool)
        for rows in chosen.values():
            others[rows] = False
        chosen["train"] = others.nonzero().flatten()
    if not len(chosen["train"]):
        raise ValueError(f"`split` must leave a sample for training, got none of {n}")
    return {name: samples.permuted(chosen[name]) if split else samples for name in SPLITS if name in chosen}


def _numbers(name: str, which: Any, n: int) -> Tensor:
    """Return numbers of samples that are given so or as a mask."""
    if isinstance(which, slice):
        which = range(n)[which]
    rows = torch.as_tensor(which)
    if name not in SPLITS:
        raise ValueError(f"`split` must be of {', '.join(SPLITS)}, got {name!r}")
    if rows.dtype == torch.bool and rows.shape == (n,):
        return rows.nonzero().flatten()
    if rows.dtype == torch.bool or rows.is_floating_point() or rows.dim() != 1 or not len(rows):
        raise ValueError(f"`split` must have numbers, or a mask of shape ({n},), got {rows.dtype} {tuple(rows.shape)}")
    if not 0 <= int(rows.min()) <= int(rows.max()) < n or len(torch.unique(rows)) < len(rows):
        raise ValueError(f"`split` must have different numbers in 0..{n - 1}, got others for {name}")
    return rows.long()
