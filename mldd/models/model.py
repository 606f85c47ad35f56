"""What a trained network must offer to be kept in a file and asked for predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mldd.models.prediction import Prediction


class Model(nn.Module):
    """A trained network with all that its predictions need: the data that it was trained on are not among them.

    A kind of models is a subclass with the three methods below, which the table ``MODELS`` of a room of
    `mldd.problems`, or an entry point of the group ``mldd.models``, gives a name.

    Attributes
    ----------
    about : dict
        What is known of the training: problem, solver, seed, status, step, versions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.about: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """Return all but the parameters that the model is made of: numbers, strings, tensors, in dicts and lists."""
        raise NotImplementedError(f"{type(self).__name__} needs `config()`")

    @classmethod
    def of(cls, config: dict[str, Any]) -> Model:
        """Return a model with any parameters.

        Parameters
        ----------
        config : dict
            What `config` has returned, read from a file.
        """
        raise NotImplementedError(f"{cls.__name__} needs `of(config)`")

    def predict(self, data: Any, **options: Any) -> Prediction:
        """Return the outputs for data, with coordinates and units.

        Parameters
        ----------
        data : str, path or object
            A name of the command line, a file, or data in memory.
        **options
            What else the kind of models takes.

        Raises
        ------
        ValueError
            Data of another kind than those of the training.
        """
        raise NotImplementedError(f"{type(self).__name__} needs `predict(data)`")


def check_said(said: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Refuse a part of a configuration that lacks what this version writes.

    Parameters
    ----------
    said : mapping of str
        The part.
    needed : sequence of str
        Names that it must have.

    Raises
    ------
    ValueError
        One of them is missing.
    """
    for name in needed:
        if name not in said:
            raise ValueError(f"nothing is said of {name}")
