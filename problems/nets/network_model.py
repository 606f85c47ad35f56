"""Networks of ours as torch modules: what is evaluated as a function of a flat vector, with parameters by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mldd.models import Field, Model, ModelError, Prediction
from mldd.problems.nets.graph_net import GraphNet
from mldd.problems.nets.layers import layer_kinds


class NetworkModel(Model):
    """A network whose parameters are the tensors of its layout, by their names.

    Parameters
    ----------
    net : GraphNet, EncodeProcessDecode or Dense
        The network; ``net.names`` are those of its tensors.
    x : Tensor, shape (N,), optional
        Parameters, which are copied; zeros by default.
    """

    def __init__(self, net: Any, x: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        vector = torch.zeros(net.layout.size, dtype=torch.float64) if x is None else x.detach()
        for name, view in zip(net.names, net.layout.views(vector), strict=True):
            home: nn.Module = self
            *path, last = name.split(".")
            for word in path:
                if word not in dict(home.named_children()):
                    home.add_module(word, nn.Module())
                home = home.get_submodule(word)
            home.register_parameter(last, nn.Parameter(view.clone()))

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters in the order of the layout."""
        return [self.get_parameter(name) for name in self.net.names]

    @property
    def kind(self) -> dict[str, Any]:
        """Dtype and device of the parameters, and so of evaluations."""
        first = self.tensors[0]
        return {"dtype": first.dtype, "device": first.device}


def network_of(config: dict[str, Any]) -> GraphNet:
    """Return the graph network that a file describes.

    Parameters
    ----------
    config : dict
        Its fields.

    Raises
    ------
    ModelError
        It has layers of a file of a user's: no model may say which code is run.
    """
    if config["kind"] not in layer_kinds():
        raise ModelError(
            f"the model must have layers {' '.join(layer_kinds())}, got {config['kind']}; make its layer an entry "
            "point of mldd.layers, or give the module: mldd.load(path, net)"
        )
    return GraphNet(**dict(config, widths=tuple(config["widths"])))


def classified(probability: NDArray[np.float64], what: str, name: str, notes: tuple[str, ...] = ()) -> Prediction:
    """Return classes with their probabilities as a prediction.

    Parameters
    ----------
    probability : ndarray, shape (n, C)
        Of every class.
    what : str
        What is classified: node, sample.
    name : str
        Of the data.
    notes : tuple of str
        What the user should know.
    """
    count, classes = probability.shape
    return Prediction(
        {
            "predicted_class": Field((what,), probability.argmax(1), {"long_name": "class of the largest probability"}),
            "probability": Field((what, "class"), probability, {"long_name": "probability of the class", "units": "1"}),
        },
        {
            what: Field((what,), np.arange(count), {"long_name": f"number of the {what} in the data"}),
            "class": Field(("class",), np.arange(classes), {"long_name": "number of the class"}),
        },
        (what,),
        {"title": f"classes of the {what}s of {name}"},
        notes,
    )
