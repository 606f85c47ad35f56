"""A trained classifier of independent samples: a dense network that gives the classes of any samples of its inputs."""

from __future__ import annotations

import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.models import Prediction
from mldd.problems.data import DataError, load_digits_images
from mldd.problems.nets import Dense, NetworkModel, classified


class SampleModel(NetworkModel):
    """A dense network that classifies samples.

    Parameters
    ----------
    net : Dense
        The network.
    x : Tensor, shape (N,), optional
        Its parameters; zeros by default.
    span : tuple of float
        Smallest and largest input of the training.
    """

    def __init__(self, net: Dense, x: Tensor | None = None, span: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(net, x)
        self.span = span

    def config(self) -> dict[str, Any]:
        """Return the network and the span of its inputs."""
        return {"network": asdict(self.net), "span": self.span}

    @classmethod
    def of(cls, config: dict[str, Any]) -> SampleModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.
        """
        network = dict(config["network"], widths=tuple(config["network"]["widths"]))
        return cls(Dense(**network), None, tuple(config["span"]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape (m, C), before the softmax.

        Parameters
        ----------
        inputs : Tensor, shape (m, F)
            Samples.
        """
        outputs: Tensor = self.net.outputs(self.tensors, inputs.to(**self.kind))
        return outputs

    def predict(self, data: Any) -> Prediction:  # type: ignore[override]  # there are no options
        """Return class and probabilities of every sample.

        Parameters
        ----------
        data : str, path, array or Tensor, shape (m, F)
            ``digits``, an archive ``.npz`` with one array (or one called ``x``), or the samples themselves.

        Raises
        ------
        DataError
            Samples with other inputs.
        """
        name, inputs = _samples(data)
        if inputs.ndim != 2 or inputs.shape[1] != self.net.widths[0] or inputs.dtype.kind not in "fiu":
            raise DataError(
                f"{name}: samples must be numbers of shape (m, {self.net.widths[0]}) as in the training, got "
                f"{inputs.dtype} of shape {inputs.shape}; give the same inputs"
            )
        if not np.isfinite(inputs).all():
            raise DataError(f"{name}: samples must be finite, got {int((~np.isfinite(inputs)).sum())} that are not")
        low, high = float(inputs.min(initial=self.span[0])), float(inputs.max(initial=self.span[1]))
        beyond = (low, high) != self.span
        notes = (f"inputs in {low:g}..{high:g}, those of the training were in {self.span[0]:g}..{self.span[1]:g}",)
        with torch.no_grad():
            probability = torch.softmax(self(torch.from_numpy(inputs)).double(), 1).cpu().numpy()
        return classified(probability, "sample", name, notes * beyond)


def _samples(data: Any) -> tuple[str, Any]:
    """Return name and inputs of samples."""
    if not isinstance(data, str | os.PathLike):
        return "data", data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    name = os.fspath(data)
    if name == "digits":
        return name, load_digits_images()[0].numpy()
    path = Path(name).expanduser()
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise DataError(f"data must be digits or a file .npz of samples, got {name!r}; correct the name")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            names = archive.files
            if "x" not in names and len(names) != 1:
                raise DataError(
                    f"{name}: expected one array, or one called x, got {', '.join(names) or 'none'}; rename"
                )
            return name, archive["x" if "x" in names else names[0]]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: expected a .npz of plain arrays, got another file ({error}); write it anew") from None
