"""A trained classifier of nodes: a graph network that gives the classes of the nodes of any graph of its features."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.models import Prediction
from mldd.problems.data import DataError, GraphInputs, inputs_of, unused_note
from mldd.problems.nets import GraphNet, NetworkModel, Source, classified, network_of, stack
from mldd.problems.nets.layers import layer_of


class NodeModel(NetworkModel):
    """A graph network that classifies nodes.

    Parameters
    ----------
    net : GraphNet
        The network.
    x : Tensor, shape (N,), optional
        Its parameters; zeros by default.
    data : str
        Name of the data of the training, for titles.
    row_normalise : bool
        Whether the rows of the features of the training were divided by their sums: those of files then are, too.
    """

    def __init__(self, net: GraphNet, x: Tensor | None = None, data: str = "", row_normalise: bool = False) -> None:
        super().__init__(net, x)
        self.data, self.row_normalise = data, row_normalise

    def config(self) -> dict[str, Any]:
        """Return network and data of the training."""
        return {"network": asdict(self.net), "data": self.data, "row_normalise": self.row_normalise}

    @classmethod
    def of(cls, config: dict[str, Any]) -> NodeModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.
        """
        return cls(network_of(config["network"]), None, config["data"], config["row_normalise"])

    def forward(self, inputs: GraphInputs) -> Tensor:
        """Return the outputs at all nodes, shape (n, C), before the softmax.

        Parameters
        ----------
        inputs : GraphInputs
            A graph with as many features as that of the training.
        """
        net, graph = self.net, inputs.graph
        layer = net.layer
        targets = np.zeros((graph.nodes, net.widths[-1]))
        operator = layer.operator(graph, layer.weightable)
        source = Source.of(net.kind, operator, inputs.features, targets, layer.attributes(graph))
        batch = stack([source.piece(np.arange(graph.nodes), net.layers)], single=True, **self.kind)
        outputs: Tensor = net.outputs(self.tensors, batch)
        return outputs

    def predict(  # type: ignore[override]  # which options there are is said
        self, data: Any, *, folder: str | os.PathLike[str] | None = None, reader: str = ""
    ) -> Prediction:
        """Return class and probabilities of every node.

        Parameters
        ----------
        data : str, path or object
            A known set, a file of a graph, or data with ``x`` and ``edge_index``; labels are not needed.
        folder : path, optional
            Of the known sets.
        reader : str
            Of a file, where its suffix does not say it.

        Raises
        ------
        DataError
            A graph of other features, or without the attributes of edges that the network reads.
        """
        inputs = inputs_of(data, folder=folder, reader=reader, row_normalise=self.row_normalise)
        self._check(inputs)
        with torch.no_grad():
            probability = torch.softmax(self(inputs).double(), 1).cpu().numpy()
        graph = inputs.graph
        lost = layer_of(self.net.kind).unused(graph.weights is not None, graph.edge_attributes is not None)
        return classified(probability, "node", inputs.name, (*inputs.notes, *unused_note(lost)))

    def _check(self, inputs: GraphInputs) -> None:
        wanted, given = self.net.widths[0], int(inputs.features.shape[1])
        if given != wanted:
            raise DataError(
                f"{inputs.name}: nodes must have {wanted} features as in the training{self._where}, got {given}; give "
                "the same features"
            )
        edges = inputs.graph.edge_attributes
        attributes = 0 if edges is None or not self.net.layer.edge_inputs else edges.shape[1]
        if attributes != self.net.edge_attributes:
            raise DataError(
                f"{inputs.name}: edges must have {self.net.edge_attributes} attributes (edge_attr) as in the training"
                f"{self._where}, got {attributes}; give the same ones"
            )

    @property
    def _where(self) -> str:
        return f" on {self.data}" if self.data else ""
