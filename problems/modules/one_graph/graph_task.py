"""What is learned on a graph: labelled nodes or pairs of nodes, the loss at each of them, and how good outputs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mldd.algebra import check_choices

Loss = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["classification", "labels", "regression", "links"]
SPLITS = {"train": "train_mask", "validation": "val_mask", "test": "test_mask"}
READ = (
    "y",
    "edge_index",
    "num_nodes",
    "edge_label",
    "edge_label_index",
    *SPLITS.values(),
)  # of a graph, besides arguments


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled items of a graph, nodes or pairs of nodes, and the loss at each.

    Parameters
    ----------
    kind : {"classification", "labels", "regression", "links"}
        One class per node, any number of labels per node, numbers per node, or whether two nodes are linked.
    items : Tensor, shape (m,) or (2, m), int64
        Labelled nodes, or pairs.
    targets : Tensor, shape (m,) or (m, k)
        Of the items.
    masks : dict of Tensor, shape (m,), bool
        Items of the parts train, validation and test, as far as there are any.
    loss : callable, optional
        ``loss(outputs, targets)``, a mean over rows; by default cross-entropy, with logits for labels and links, or
        the mean square.
    """

    kind: Kind
    items: Tensor
    targets: Tensor
    masks: Mapping[str, Tensor]
    loss: Loss | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that there is none of, and nothing to fit to."""
        check_choices(self, {"kind": ("classification", "labels", "regression", "links")})
        if not bool(self.masks["train"].any()):
            raise ValueError("`data` must have a labelled training node, got none; set train_mask and y (-1: no label)")

    @property
    def fitted(self) -> Tensor:
        """Positions of the training items, int64."""
        return self.masks["train"].nonzero().flatten()

    def outputs(self, states: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs at items: states of nodes, or inner products of the states of two.

        Parameters
        ----------
        states : Tensor, shape (n, k)
            What the network returns.
        rows : Tensor, shape (m,) or (2, m)
            Rows of the items.
        """
        if self.kind == "links":
            return (states[rows[0]] * states[rows[1]]).sum(-1)
        return states[rows]

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over items, shape ().

        Parameters
        ----------
        outputs : Tensor, shape (m, ...)
            Of the items.
        targets : Tensor, shape (m, ...)
            Of the items.
        """
        if self.loss is not None:
            return self.loss(outputs, targets)
        if self.kind == "classification":
            return functional.cross_entropy(outputs, targets)
        targets = targets.to(outputs).reshape(outputs.shape)
        if self.kind == "regression":
            return functional.mse_loss(outputs, targets)
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return sums over items that make a measure of quality: hits, or squares of errors.

        Parameters
        ----------
        outputs : Tensor, shape (m, ...)
            Of the items.
        targets : Tensor, shape (m, ...)
            Of the items.
        """
        if self.kind == "classification":
            return {"accuracy": float((outputs.argmax(-1) == targets).sum())}
        targets = targets.to(outputs).reshape(outputs.shape)
        if self.kind == "regression":
            return {"mse": float((outputs - targets).square().reshape(len(targets), -1).mean(-1).sum())}
        return {"accuracy": float(((outputs > 0) == (targets > 0.5)).double().reshape(len(targets), -1).mean(-1).sum())}


def task_of(fields: Mapping[str, Any], nodes: int, loss: Loss | None = None, labels: str = "train") -> Task:
    """Return what a graph asks to be learned: by its labels `y`, or the pairs of `edge_label_index`.

    Whole numbers are classes, -1 for nodes without a label; a matrix of zeros and ones says which labels every node
    has; all else is regression, NaN for nodes without a value.

    Parameters
    ----------
    fields : dict
        Of the graph, by name.
    nodes : int
        Number n of nodes.
    loss : callable, optional
        As for `Task`.
    labels : {"train", "all"}
        Fit to the training nodes, or to all that are not for testing.

    Raises
    ------
    ValueError
        No labels, or too few.
    """
    if "y" not in fields or ("edge_label_index" in fields and "edge_label" in fields):
        return _links(fields, loss)
    y = fields["y"]
    if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != nodes:
        what = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"`y` must have a row for each of {nodes} nodes, got {what}")
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    kind: Kind = "regression"
    if not y.dtype.is_floating_point and y.dim() == 1:
        kind, there, y = "classification", y >= 0, y.long()
    elif y.dim() == 2 and bool(((y == 0) | (y == 1) | (y != y)).all()):
        kind, there = "labels", ~y.isnan().any(1) if y.dtype.is_floating_point else torch.ones(len(y), dtype=torch.bool)
    else:
        y = y if y.dtype.is_floating_point else y.double()
        there = ~y.isnan().flatten(1).any(1) if y.dim() > 1 else ~y.isnan()
    items = there.nonzero().flatten()
    masks = {name: fields[key].bool()[items] for name, key in SPLITS.items() if isinstance(fields.get(key), Tensor)}
    if any(mask.dim() > 1 for mask in masks.values()):
        raise ValueError("masks must have shape (n,), got several splits; choose one: data.train_mask[:, 0]")
    if "train" not in masks:
        held = [masks[name] for name in ("validation", "test") if name in masks]
        masks["train"] = ~torch.stack(held).any(0) if held else torch.ones(len(items), dtype=torch.bool)
    if labels == "all":
        masks["train"] = ~masks["test"] if "test" in masks else torch.ones_like(masks["train"])
    return Task(kind, items, y[items], masks, loss)


def _links(fields: Mapping[str, Any], loss: Loss | None) -> Task:
    pairs, targets = fields.get("edge_label_index"), fields.get("edge_label")
    if pairs is None or targets is None:
        raise ValueError(
            f"`data` must have labels y of the nodes, or edge_label_index and edge_label, got {' '.join(fields)}; add "
            "them, or give loss(net, data)"
        )
    return Task("links", pairs, targets, {"train": torch.ones(pairs.shape[1], dtype=torch.bool)}, loss)


def check_mean(task: Task, states: Tensor) -> None:
    """Refuse to share out a loss whose value over all training items is not the mean of those over pieces.

    Parameters
    ----------
    task : Task
        With the loss.
    states : Tensor, shape (n, k)
        What the network returns.

    Raises
    ------
    ValueError
        It is a sum, say, or has weights by class.
    """
    outputs, targets = task.outputs(states, task.items[..., task.fitted]), task.targets[task.fitted]
    m, half = len(outputs), len(outputs) // 2
    if task.loss is None or half == 0:
        return
    with torch.no_grad():
        pieces = [task.mean(outputs[a:b], targets[a:b]) * (b - a) / m for a, b in ((0, half), (half, m))]
        whole = task.mean(outputs, targets)
    if not (pieces[0] + pieces[1] - whole).abs() <= 1e-4 * whole.abs() + 1e-7:
        raise ValueError(
            "`loss` must be a mean over rows to be shared out to parts, ranks and batches, got another (a sum, or "
            "weights by class?); divide by the number of rows, or use one rank and subdomains=layers"
        )


def measured(task: Task, states: Tensor, parts: Sequence[str] = tuple(SPLITS)) -> dict[str, float]:
    """Return loss and accuracy, or the root mean square of errors, on the items of some parts that have any.

    Parameters
    ----------
    task : Task
        With items and targets.
    states : Tensor, shape (n, k)
        What the network returns.
    parts : sequence of str
        Some of train, validation and test.
    """
    found: dict[str, float] = {}
    for name in (name for name in parts if name in task.masks):
        items = task.masks[name].nonzero().flatten()
        if not len(items):
            continue
        outputs, targets = task.outputs(states, task.items[..., items]), task.targets[items]
        found[f"{name}_loss"] = float(task.mean(outputs, targets))
        for key, total in task.scores(outputs, targets).items():
            mean = total / len(items)
            found |= {f"{name}_rmse": mean**0.5} if key == "mse" else {f"{name}_{key}": mean}
    return found
