"""What the first layer of a network is applied to: the inputs whose moments a metric of the unknowns is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from mldd.algebra import FirstLayer
from mldd.problems.nets.dense import Dense
from mldd.problems.nets.graph_net import GraphNet

Total = Callable[[Tensor], Tensor]


def first_of_graph(net: GraphNet, terms: Sequence[Any], work: float, total: Total, samples: int = 1) -> FirstLayer:
    """Return the first layer of a graph network.

    Parameters
    ----------
    net : GraphNet
        Of a layer that is linear in each of its inputs.
    terms : sequence of ndarray or csr_matrix, shape (m, S F)
        Inputs of every term at the nodes of this rank, already propagated where the layer does so.
    work : float
        Multiplications of a sweep forward over all data.
    total : callable
        Returns the sum of a tensor over ranks.
    samples : int
        Number S of samples that stand side by side.

    Raises
    ------
    ValueError
        A layer whose inputs have several matrices or several inputs one.
    """
    layer, named = net.layer, net.tensors(0)
    if len(layer.terms) != len(layer.inputs):
        raise ValueError(
            f"a metric of the inputs needs a first layer with one matrix per input (gcn, sage, gat), got {net.kind}; "
            "leave it out"
        )
    offsets = dict(zip(named, net.layout.offsets, strict=False))
    rows = [_of_matrix(offsets[name], *named[name]) for name in layer.inputs]
    if named["bias"] == (rows[0].shape[1],):
        rows.append(_of_matrix(offsets["bias"], 1, rows[0].shape[1]))
    if samples > 1:  # every sample of a node is a row of its own
        terms = [np.asarray(term).reshape(len(term) * samples, -1) for term in terms]
    is_sparse = any(sp.issparse(term) for term in terms)
    inputs = terms[0]
    if len(terms) > 1:
        inputs = sp.hstack(terms, format="csr") if is_sparse else np.hstack(terms)
    return FirstLayer((inputs,), torch.cat(rows), work, total)


def first_of_dense(net: Dense, inputs: Tensor, samples: int, total: Total) -> FirstLayer:
    """Return the first layer of a fully connected network.

    Parameters
    ----------
    net : Dense
        The network.
    inputs : Tensor, shape (m, F)
        Samples of this rank.
    samples : int
        Those of all ranks.
    total : callable
        Returns the sum of a tensor over ranks.
    """
    work = samples * sum(a * b for a, b in zip(net.widths, net.widths[1:], strict=False))
    return FirstLayer((inputs.detach().cpu().double().numpy(),), places_of_linear(0, *net.widths[:2]), work, total)


def places_of_linear(start: int, inner: int, outer: int, bias: int | None = -1) -> Tensor:
    """Return the places of a weight, shape (outer, inner) as torch has it, and of its bias, one row per input.

    Parameters
    ----------
    start : int
        Where the weight begins.
    inner, outer : int
        Inputs and outputs.
    bias : int, optional
        Where the bias begins, -1 for right behind the weight; None for no bias.

    Returns
    -------
    Tensor, shape (inner, outer) or (inner + 1, outer), int64
        Places in the flat vector.
    """
    weight = _of_matrix(start, outer, inner).mT
    if bias is None:
        return weight.contiguous()
    at = start + inner * outer if bias < 0 else bias
    return torch.cat([weight, _of_matrix(at, 1, outer)])


def _of_matrix(start: int, rows: int, columns: int) -> Tensor:
    return torch.arange(start, start + rows * columns).view(rows, columns)
