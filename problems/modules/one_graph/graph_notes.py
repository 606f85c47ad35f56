"""What of a graph and of a network on it is not used, or is used otherwise than it seems, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mldd.algebra import FlatModule
from mldd.problems.modules import has_statistics
from mldd.problems.modules.one_graph.graph_arguments import Arguments
from mldd.problems.modules.one_graph.graph_loss import modes
from mldd.problems.modules.one_graph.graph_task import READ, Task
from mldd.problems.modules.one_graph.locality import ignored
from mldd.problems.modules.one_graph.training_mode import is_two_faced


def notes_of(model: FlatModule, arguments: Arguments, at: Tensor, task: Task | None, *, noisy: bool) -> list[str]:
    """Return what of a graph is not used or used twice, and whether the network is another one in training mode.

    Parameters
    ----------
    model : FlatModule
        The network.
    arguments : Arguments
        How it is called.
    at : Tensor, shape (N,)
        Parameters that are not zero.
    task : Task or None
        What is learned; None for a loss of the user's own that is given the whole graph.
    noisy : bool
        Whether the network draws random numbers in training, and is evaluated in training mode for this.
    """
    links = task is not None and task.kind == "links"
    lost = arguments.unused(("edge_index", "edge_label", "edge_label_index", "num_nodes") if links else READ)
    with model.at(at, modes=modes(model.module, False)):
        lost += ignored(model.module, arguments)
    notes = [f"not used: {', '.join(lost)}"] if lost else []
    if task is None:
        return notes
    if any(has_statistics(module) and not module.training for module in model.module.modules()):
        notes.append("batch normalisation in evaluation mode is trained by the statistics of the graph all the same")
    if not noisy and is_two_faced(model, arguments, at):
        notes.append(
            f"{type(model.module).__name__} returns something else in training mode, without random numbers: it is "
            "trained as it is in evaluation mode"
        )
    return notes if links else [*notes, *_of_masks(task), *_of_labels(arguments.fields, task)]


def _of_masks(task: Task) -> list[str]:
    """Return how many items of validation and test are trained on."""
    pairs = [("validation", "train"), ("test", "train"), ("test", "validation")]
    known = [(a, b) for a, b in pairs if a in task.masks and b in task.masks]
    shared = [(int((task.masks[a] & task.masks[b]).sum()), a, b) for a, b in known]
    return [
        f"{count} nodes are for {a} and for {b}, too: their scores are of no use" for count, a, b in shared if count
    ]


def _of_labels(fields: Mapping[str, Any], task: Task) -> list[str]:
    """Return how many nodes are left out for one missing number, and that rows with a single one are several labels."""
    y: Tensor = fields["y"]
    notes = []
    if y.dim() > 1 and y.dtype.is_floating_point:
        missing = y.flatten(1).isnan()
        partly = int((missing.any(1) & ~missing.all(1)).sum())
        notes += [f"{partly} nodes of which only some numbers of y are known are left out"] if partly else []
    if task.kind == "labels" and bool((task.targets.sum(1) == 1).all()):
        notes.append("every row of y has a single one, and is taken for several labels; for classes give y.argmax(1)")
    return notes
