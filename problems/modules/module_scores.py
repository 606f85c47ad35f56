"""Losses and scores of a trained module on samples, and running statistics that fit its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mldd.problems.modules.user_modules import has_statistics

Score = Callable[..., Any]
_AT_ONCE = 1024  # samples that are evaluated together


def settled(net: nn.Module, modes: Mapping[nn.Module, bool], see: Callable[[], object]) -> None:
    """Make the running statistics of batch normalisation those of samples at the module's parameters.

    Parameters
    ----------
    net : nn.Module
        What is changed: statistics of those modules inside that are trained by statistics of a batch.
    modes : mapping of nn.Module to bool
        Whether a module is in training mode in training.
    see : callable
        Evaluates the module for all samples, in batches.
    """
    norms = [m for m in net.modules() if has_statistics(m)]
    norms = [m for m in norms if m.track_running_stats and modes[m]]
    if not norms:
        return
    before = {m: m.training for m in net.modules()}
    momenta = [m.momentum for m in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain mean over all batches
    try:
        with torch.enable_grad():
            see()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for m, training in before.items():
            m.training = training


def scored(
    net: nn.Module,
    samples: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    scores: Mapping[str, Score],
    weights: Tensor | None = None,
    *,
    outputs: bool,
) -> dict[str, float]:
    """Return loss and scores of a module, in the mode it has.

    Parameters
    ----------
    net : nn.Module
        The module.
    samples : Samples or GraphSamples
        What it is tried on.
    loss : callable
        ``loss(net, batch)``; its mean over pieces of the samples is taken.
    scores : mapping of str to callable
        By name; none for those of the samples: the accuracy where targets are classes.
    weights : Tensor, shape (n,), optional
        Of the samples in the mean loss; by default they count alike.
    outputs : bool
        Scores are functions of all outputs and targets; of module and batch otherwise, whose mean is taken.
    """
    weights = torch.ones(len(samples), dtype=torch.float64) if weights is None else weights
    found = {"loss": 0.0}
    if not outputs:
        found |= dict.fromkeys(scores, 0.0)
    pairs = []
    for rows in torch.split(torch.arange(len(samples)), 1 if samples.in_batches else _AT_ONCE):
        batch, share = samples.take(rows), len(rows) / len(samples)
        weight = float(weights[rows].sum() / weights.sum())
        if weight > 0:
            found["loss"] += weight * float(loss(net, batch).detach())
        if outputs:
            with torch.no_grad():
                pairs.append((samples.outputs(net, batch), samples.targets(batch)))
        else:
            for name, score in scores.items():
                found[name] += share * float(score(net, batch))
    if outputs:
        found |= _of_outputs(pairs, scores or samples.scores)
    return found


def _of_outputs(pairs: list[tuple[Any, Any]], scores: Any) -> dict[str, float]:
    """Return scores by name, or those that a function of all outputs and targets returns."""
    if not all(isinstance(thing, Tensor) for pair in pairs for thing in pair):
        if isinstance(scores, Mapping):
            raise ValueError(
                "`scores` need outputs and targets that are tensors; give `loss(net, batch)` and scores so"
            )
        return {}
    made, wanted = (torch.cat(column) for column in zip(*pairs, strict=True))
    if isinstance(scores, Mapping):
        return {name: float(score(made, wanted)) for name, score in scores.items()}
    return dict(scores(made, wanted))
