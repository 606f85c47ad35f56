"""What is learned on a graph: labelled nodes or pairs of nodes, the loss at each of them, and how good outputs are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mldd.algebra import check_choices
from mldd.problems.data import SPLITS
from mldd.problems.modules import check_log_probabilities, check_pairs

Loss = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["classification", "labels", "regression", "links"]
# Fields with the nodes of a part of the data: a mask, or numbers.
_PLACES = {
    "train": ("train_mask", "train_idx"),
    "validation": ("val_mask", "val_idx", "valid_idx"),
    "test": ("test_mask", "test_idx"),
}
READ = (
    *("y", "edge_index", "num_nodes", "edge_label", "edge_label_index"),
    *(name for names in _PLACES.values() for name in names),
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
        """Refuse a kind that there is none of, a loss that is no function, and nothing to fit to."""
        if self.loss is not None and not callable(self.loss):
            raise ValueError(
                f"`loss` must be a function of outputs and targets, got {self.loss!r}; give torch.nn.functional."
                "mse_loss, say, or leave it out"
            )
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
        return _links(fields, nodes, loss)
    y = fields["y"]
    if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != nodes:
        what = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"`y` must have a row for each of {nodes} nodes, got {what}; for labels of whole graphs give a list of "
            "them: [data], or data.to_data_list() of a batch"
        )
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    kind: Kind = "regression"
    if loss is None:
        _check_signs(y)
    if not y.dtype.is_floating_point and y.dim() == 1:
        kind, there, y = "classification", y >= 0, y.long()
    elif y.dim() == 2 and bool(((y == 0) | (y == 1) | (y != y)).all()):
        kind, there = "labels", ~y.isnan().any(1) if y.dtype.is_floating_point else torch.ones(len(y), dtype=torch.bool)
    else:
        y = y if y.dtype.is_floating_point else y.double()
        there = ~y.isnan().flatten(1).any(1) if y.dim() > 1 else ~y.isnan()
    items = there.nonzero().flatten()
    masks = {name: mask[items] for name, mask in _masks(fields, nodes).items()}
    if "train" not in masks:
        held = [masks[name] for name in ("validation", "test") if name in masks]
        masks["train"] = ~torch.stack(held).any(0) if held else torch.ones(len(items), dtype=torch.bool)
    if labels == "all":
        masks["train"] = ~masks["test"] if "test" in masks else torch.ones_like(masks["train"])
    return Task(kind, items, y[items], masks, loss)


def _check_signs(y: Tensor) -> None:
    """Refuse a matrix of -1, 0 and 1: several labels per node with unknown ones, or numbers to be fitted."""
    signs = y.dim() == 2 and y.dtype != torch.bool and bool(((y == 0) | (y.abs() == 1) | (y != y)).all())
    if signs and bool((y < 0).any()):
        raise ValueError(
            "`y` with several labels per node must have zeros and ones, and NaN where nothing is known, got -1; write "
            "torch.where(y < 0, torch.nan, y.float()), or give the loss that they are meant for"
        )
    if y.dtype.is_floating_point and bool(y.isinf().any()):
        raise ValueError("`y` must be finite, or NaN where nothing is known, got infinity; clean it")


def _masks(fields: Mapping[str, Any], nodes: int) -> dict[str, Tensor]:
    """Return the nodes of every part of the data, shape (n,), bool: as masks have them, or numbers of nodes."""
    found: dict[str, Tensor] = {}
    for part, names in _PLACES.items():
        for name in (name for name in names if isinstance(fields.get(name), Tensor) and part not in found):
            found[part] = (_mask if name.endswith("mask") else _numbered)(name, fields[name], nodes)
    return found


def _mask(name: str, given: Tensor, nodes: int) -> Tensor:
    if given.dim() > 1:
        raise ValueError(f"masks must have shape (n,), got several splits; choose one: data.{name}[:, 0]")
    if len(given) != nodes or not bool(((given == 0) | (given == 1)).all()):
        raise ValueError(
            f"`{name}` must say of each of {nodes} nodes whether it is in, got {len(given)} values of {given.dtype}; "
            f"numbers of nodes are {name.removesuffix('mask')}idx"
        )
    return given.bool()


def _numbered(name: str, given: Tensor, nodes: int) -> Tensor:
    whole = not given.dtype.is_floating_point and given.dtype != torch.bool
    if given.dim() != 1 or not whole or (len(given) and not 0 <= int(given.min()) <= int(given.max()) < nodes):
        raise ValueError(f"`{name}` must have numbers of nodes in 0..{nodes - 1}, got others; correct it or use a mask")
    return torch.zeros(nodes, dtype=torch.bool, device=given.device).index_fill_(0, given.long(), True)


def _links(fields: Mapping[str, Any], nodes: int, loss: Loss | None) -> Task:
    pairs, targets = fields.get("edge_label_index"), fields.get("edge_label")
    if pairs is None or targets is None:
        raise ValueError(
            f"`data` must have labels y of the nodes, or edge_label_index and edge_label, got {' '.join(fields)}; add "
            "them, or give loss(net, data)"
        )
    _check_links(pairs, targets, nodes, loss)
    return Task("links", pairs, targets, {"train": torch.ones(pairs.shape[1], dtype=torch.bool)}, loss)


def _check_links(pairs: Any, targets: Any, nodes: int, loss: Loss | None) -> None:
    """Refuse pairs of nodes that are not there, and targets that do not say of each pair whether it is linked."""
    fits = isinstance(pairs, Tensor) and pairs.dim() == 2 and pairs.shape[0] == 2 and pairs.dtype == torch.int64
    if not fits or (pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < nodes):
        what = f"{pairs.dtype} {tuple(pairs.shape)}" if isinstance(pairs, Tensor) else type(pairs).__name__
        what += f" of {int(pairs.min())}..{int(pairs.max())}" if fits else ""
        raise ValueError(
            f"`edge_label_index` must have shape (2, m) and nodes 0..{nodes - 1}, got {what}; correct or transpose it"
        )
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) != pairs.shape[1]:
        what = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"`edge_label` must have a row for each of {pairs.shape[1]} pairs, got {what}; correct it")
    if loss is None and not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError("`edge_label` must be in [0, 1] for links, got other values; correct it, or give a loss")


def check_outputs(task: Task, outputs: Tensor) -> None:
    """Refuse outputs that the default loss would misread: too few for the classes, or probabilities in place of logits.

    Parameters
    ----------
    task : Task
        With the targets.
    outputs : Tensor, shape (m, ...)
        At the training items, with any parameters.

    Raises
    ------
    ValueError
        They do not fit the default loss.
    """
    if task.loss is not None or task.kind == "links":
        return
    targets = task.targets[task.fitted]
    if task.kind != "classification" and _width(targets) != _width(outputs):
        raise ValueError(
            f"the network must return as many numbers per node as y has, {_width(targets)}, got {_width(outputs)}; "
            "change its last layer, or give classes as whole numbers (y.long())"
        )
    if task.kind == "regression":
        return
    if task.kind == "classification":
        classes = outputs.shape[-1] if outputs.dim() > 1 else 1
        if outputs.dim() != 2 or int(targets.max()) >= classes:
            raise ValueError(
                f"labels y must be in 0..{classes - 1} for the {classes} outputs of the network, got "
                f"{int(targets.min())}..{int(targets.max())}; make it as many outputs, number the classes from 0, or "
                "give numbers that are no classes as y.float()"
            )
    inside = bool(((outputs >= 0) & (outputs <= 1)).all()) and not bool((outputs == 0).all())
    if inside and (task.kind == "labels" or bool(((outputs.sum(-1) - 1).abs() < 1e-3).all())):
        raise ValueError(
            "the default loss takes logits, got outputs that look like probabilities; leave out the last softmax or "
            "sigmoid, or give loss=(outputs, targets) -> mean"
        )


def _width(rows: Tensor) -> int:
    return rows[0].numel() if len(rows) else 0


def check_loss(task: Task, outputs: Tensor, shared: bool) -> None:
    """Refuse outputs that the loss would misread, and to share out a loss that is no mean over rows.

    Parameters
    ----------
    task : Task
        With the loss.
    outputs : Tensor, shape (m, ...)
        At the training items, with any parameters.
    shared : bool
        Whether the loss over all training items is to be the mean of those over pieces.

    Raises
    ------
    ValueError
        The default loss would misread them, or the loss is no mean.
    """
    check_outputs(task, outputs)
    targets, m = task.targets[task.fitted], len(outputs)
    half = m // 2
    if task.loss is None:
        return
    whole = _evaluated(task.loss, outputs, targets)
    if half == 0 or not shared:
        return
    with torch.no_grad():
        pieces = [task.mean(outputs[a:b], targets[a:b]) * (b - a) / m for a, b in ((0, half), (half, m))]
    if not bool((pieces[0] + pieces[1] - whole).abs() <= 1e-4 * whole.abs() + 1e-7):
        raise ValueError(
            "`loss` must be a mean over rows to be shared out to parts, ranks and batches, got another (a sum, or "
            "weights by class?); divide by the number of rows, or use one rank and subdomains=layers"
        )


def _evaluated(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss, refusing in words outputs and targets that it does not take, or pairs each with all."""
    given = f"outputs {outputs.dtype} {tuple(outputs.shape)} and targets {targets.dtype} {tuple(targets.shape)}"
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size", UserWarning)
            whole = loss(outputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, UserWarning) as error:
        raise ValueError(
            f"`loss` must take {given}, got {type(error).__name__}: {' '.join(str(error).split())[:200]}; give "
            "one that brings them together: lambda outputs, targets: ..."
        ) from error
    check_pairs(loss, outputs, targets, whole)
    check_log_probabilities(loss, outputs)
    return whole


def measured(task: Task, states: Tensor, parts: Sequence[str] = SPLITS) -> dict[str, float]:
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
