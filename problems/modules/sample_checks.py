"""What is looked at before samples are trained on: that the loss can be evaluated, is finite, and can be shared out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mldd.problems.modules.sample_loss import SampledModule
from mldd.problems.modules.user_modules import check_log_probabilities, check_pairs
from mldd.ranks import Communicator

_PAIRED = 8  # samples on which it is seen whether a loss pairs every output with all targets


def check_evaluates(model: SampledModule, comm: Communicator, loss: Callable[..., Tensor] | None) -> None:
    """Evaluate a loss once: say in words where that is impossible, and warn where ranks cannot share its samples.

    Parameters
    ----------
    model : SampledModule
        Module, loss and samples.
    comm : Communicator
        Ranks that are to share the samples.
    loss : callable or None
        ``loss(outputs, targets)``; None where it is none of these.

    Raises
    ------
    ValueError
        The module does not take the samples, or the loss does not take what it returns, pairs every output with all
        targets, or is not finite for samples that are not.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size", UserWarning)  # it would pair every output with all
            kind = model.kind
    except (RuntimeError, UserWarning, TypeError, IndexError) as error:
        like, shown = model.flat.flat, model.samples.take(torch.zeros(1, dtype=torch.int64))
        tensors = [t for t in pytree.tree_leaves(shown) if isinstance(t, Tensor)]
        kinds = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors) or type(shown).__name__
        raise ValueError(
            f"`loss` cannot be evaluated: {error}; a sample is {kinds}, parameters are {like.dtype} on {like.device}"
        ) from error
    if not model.samples.in_batches:
        _check_finite(model)
        if loss is not None:
            _check_pairs(model, loss)
    if kind == "whole" and comm.ranks > 1:
        warnings.warn(
            f"the {model.samples.units} of a batch are coupled (a loss that is no mean?), so that ranks cannot share "
            "them: the first one evaluates the whole batch; ranks share subdomains only",
            stacklevel=4,
        )


def _check_finite(model: SampledModule) -> None:
    """Refuse samples that are not finite, where the loss over them is not either: some losses leave them out."""
    stacked: Any = getattr(model.samples, "stacked", None)
    floats = [t for t in pytree.tree_leaves(stacked) if isinstance(t, Tensor) and t.is_floating_point()]
    wrong = torch.zeros(len(model.samples), dtype=torch.bool)
    for t in floats:
        wrong |= ~t.flatten(1).isfinite().all(1).cpu() if t.dim() > 1 else ~t.isfinite().cpu()
    if not bool(wrong.any()):
        return
    value, _ = model.evaluate(torch.cat([which.nonzero().flatten()[:_PAIRED] for which in (wrong, ~wrong)]))
    if not bool(value.isfinite()):
        raise ValueError(
            f"the loss must be finite at the start, got {float(value)} for {int(wrong.sum())} samples that have NaN or "
            "infinite entries; fill them in, leave them out, or give a loss that does"
        )


def _check_pairs(model: SampledModule, loss: Callable[..., Tensor]) -> None:
    """Refuse a loss that does not take the outputs of a few samples for what they are."""
    batch = model.samples.take(torch.arange(min(_PAIRED, len(model.samples))))
    with model.flat.at(model.flat.flat, modes=model.modes), torch.no_grad():
        outputs, targets = model.samples.outputs(model.flat.module, batch), model.samples.targets(batch)
        check_log_probabilities(loss, outputs)
        column = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape == (*targets.shape, 1)
        if column:
            check_pairs(loss, outputs, targets, loss(outputs, targets))
