"""Callbacks for nested iteration: keep the weights of a training on a coarse mesh, and start a finer one from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldd.anemoi.lightning import Callback, check_lightning
from mldd.loop import UntrustedError, check_regular, check_torch_file, replacing


class KeepWeights(Callback):
    """Write the trained parameters by name at the end of a training, for `CoarseStart` to read.

    Parameters
    ----------
    out : str or path
        The file, which is replaced.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        check_lightning("KeepWeights")
        self._out = Path(out)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write them."""
        if not trainer.is_global_zero:
            return
        self._out.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: p.detach().cpu().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        with replacing(self._out) as new:
            torch.save(kept, new)


class CoarseStart(Callback):
    """Start from the weights of the same network that was trained on a coarser mesh or fewer cells (nested iteration).

    The weights of encoder, processor and decoder do not depend on the numbers of nodes. Parameters of single nodes or
    edges (trainable tensors of Anemoi) do: those keep their own start, which is said. A training that is resumed from a
    checkpoint of its own has the weights of that.

    Parameters
    ----------
    weights : str or path
        What `KeepWeights` has written.

    Raises
    ------
    ValueError
        The file holds something else, or no parameter of this network, when the training starts.
    """

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        check_lightning("CoarseStart")
        self._weights = Path(weights)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Copy the weights, before there are optimizers."""
        if stage != "fit":
            return
        given = read_weights(self._weights)
        own = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        fits = [name for name, p in own.items() if name in given and given[name].shape == p.shape]
        if not fits:
            _refuse(self._weights, f"parameters of this network, got {', '.join(list(given)[:2])}, ...")
        with torch.no_grad():
            for name in fits:
                own[name].copy_(given[name])
        if trainer.is_global_zero:
            print(_summary(own, fits, self._weights), flush=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return parameters by name from a file, of which nothing is executed.

    Parameters
    ----------
    path : Path
        What `KeepWeights` has written.

    Raises
    ------
    ValueError
        It holds something else, is not there, or is damaged.
    """
    found: Any
    try:
        check_regular(path)
        check_torch_file(path, str(path))
        found = torch.load(path, weights_only=True, map_location="cpu")
    except UntrustedError:
        raise
    except FileNotFoundError:
        found, what = None, "none"
    except Exception as error:  # a damaged file can raise anything
        found, what = None, " ".join(str(error).split())[:100]
    else:
        what = type(found).__name__
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        _refuse(path, f"parameters by name, got {what}")
    return dict(found)


def _summary(own: dict[str, Any], fits: list[str], path: Path) -> str:
    numbers = [sum(own[name].numel() for name in names) for names in (fits, own)]
    left = [name for name in own if name not in set(fits)]
    rest = f"; with their own start: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if left[5:] else "")
    return f"mldd: {numbers[0]} of {numbers[1]} parameters start from {path}" + (rest if left else "")


def _refuse(path: Path, what: str) -> None:
    raise ValueError(f"{path} must hold {what}; train the same network coarsely with mldd.anemoi.KeepWeights")
