"""Encode-process-decode networks: grid nodes, hidden mesh, processor; pure functions of (parameters, batch).

One block of message passing sends from senders j to receivers i along the edges of an operator B,

    a_ij = act(E_ij W_e + s_j W_s + r_i W_r + b),   E_ij = act(e_ij W_x + b_x),
    r_i <- r_i + norm(act(r_i W_v + (sum_j B_ij a_ij) W_a + c) W_o + c_o),

which is an interaction network: the last linear layer of the edge network and the first of the node network on the sum
act on it one after the other, and so are one matrix W_a. Products with W_s and W_r are done per node and only then
gathered along the edges; E does not depend on the sample and is computed once for all samples. The encoder sends from
the grid to the mesh, the processor inside the mesh, the decoder from the mesh to the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mldd.algebra import Layout
from mldd.problems.nets.layers import linear
from mldd.problems.nets.mesh_batches import Channel, MeshBatch
from mldd.problems.nets.operators import Sparse

Activation = Literal["silu", "gelu", "relu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.relu,
    "tanh": torch.tanh,
}
_EDGE, _STATIC = 4, 3  # features of an edge and of a mesh node
_EMBEDDING = ("grid.weight", "grid.bias", "mesh.weight", "mesh.bias")
_BLOCK = ("edge.weight", "edge.bias", "message.edge", "message.sender", "message.receiver", "message.bias") + (
    "update.state",
    "update.message",
    "update.bias",
    "output.weight",
    "output.bias",
)  # tensors of a block without norm
_EPSILON = 1e-5  # of the norm


@dataclass(frozen=True)
class EncodeProcessDecode:
    """An encode-process-decode network on a grid and its hidden mesh.

    Parameters
    ----------
    features, hidden, classes : int
        Inputs F of a grid node, width H of all states, outputs C of a grid node.
    rounds : int
        Rounds of message passing inside the mesh, each with its own parameters.
    activation : {"silu", "gelu", "relu", "tanh"}
        Of all networks inside.
    norm : bool
        Whether what is added to a state is normalised over its H entries (layer norm, gain and shift trained).
    skip : bool
        Whether the outputs have a term that is linear in the inputs.

    Raises
    ------
    ValueError
        A count below one, or an unknown activation.

    References
    ----------
    Battaglia et al., arXiv:1806.01261, algorithm 1 (a block; there is no global state here); Lam et al.,
    arXiv:2212.12794, supplement 3 (encoder, processor, decoder with residuals). Unlike there, edges have no state of
    their own that is carried from block to block, and the grid nodes are not updated in the encoder.
    """

    features: int
    hidden: int
    classes: int = 1
    rounds: int = 2
    activation: Activation = "silu"
    norm: bool = False
    skip: bool = True

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        for name in ("features", "hidden", "classes", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")

    @property
    def widths(self) -> tuple[int, int, int]:
        """(F, H, C)."""
        return self.features, self.hidden, self.classes

    @property
    def layers(self) -> int:
        """Number of blocks: encoder, rounds, decoder."""
        return self.rounds + 2

    @cached_property
    def layout(self) -> Layout:
        """Embeddings of grid and mesh and the encoder's block; a block per round; the decoder's block and the head."""
        f, h, c = self.widths
        embedding: list[tuple[int, ...]] = [(f, h), (h,), (_STATIC, h), (h,)]
        block: list[tuple[int, ...]] = [(_EDGE, h), (h,), *[(h, h)] * 3, (h,), *[(h, h)] * 2, (h,), (h, h), (h,)]
        block += [(h,)] * 2 * self.norm
        head: list[tuple[int, ...]] = [(h, c), (c,)] + [(f, c)] * self.skip
        groups = [embedding + block, *[block] * self.rounds, block + head]
        shapes = tuple(shape for group in groups for shape in group)
        return Layout(shapes, tuple(k for k, group in enumerate(groups) for _ in group))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the layout: ``encoder.message.sender``."""
        block = _BLOCK + ("norm.gain", "norm.shift") * self.norm
        blocks = ("encoder", *(f"rounds.{k}" for k in range(self.rounds)), "decoder")
        head = ("head.weight", "head.bias") + ("skip.weight",) * self.skip
        return _EMBEDDING + tuple(f"{of}.{name}" for of in blocks for name in block) + head

    @property
    def decayed(self) -> int:
        """Number of unknowns with weight decay: all of them; gains of the norm are stored as deviations from one."""
        return self.layout.size

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start, biases, head and linear term zero: all outputs are zero; shape (N,), float64.

        References
        ----------
        Glorot and Bengio, AISTATS 2010, equation 16.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        views = self.layout.views(x)
        for view in views[: len(views) - 2 - self.skip]:
            if view.dim() == 2:
                bound = math.sqrt(6.0 / sum(view.shape))
                view.uniform_(-bound, bound, generator=generator)
        return x

    def outputs(self, parameters: list[Tensor], batch: MeshBatch, scales: list[Tensor] | None = None) -> Tensor:
        """Return the outputs of all grids, shape (p k, S C).

        Parameters
        ----------
        parameters : list of Tensor
            ``layout.views(x)`` of x, shape (N,), or (p, N) for a batch.
        batch : MeshBatch
            Grids with their meshes.
        scales : None
            There is no dropout.

        Raises
        ------
        ValueError
            Factors of dropout, which this network does not have.
        """
        if scales is not None:
            raise ValueError("an encode-process-decode network has no dropout, got factors of it; use dropout=0")
        act, p, size = _ACTIVATIONS[self.activation], batch.parts or 1, len(_BLOCK) + 2 * self.norm
        inputs = batch.features[0].reshape(len(batch.features[0]), batch.samples, self.features)
        grid = act(_affine(inputs, parameters[0], parameters[1]))
        mesh = act(_affine(batch.static[:, None], parameters[2], parameters[3]))
        blocks = [parameters[4 + k * size : 4 + (k + 1) * size] for k in range(self.layers)]
        encoder, *processor, decoder = zip(blocks, batch.channels, strict=True)
        mesh = self._block(*encoder, grid, mesh)
        for weights, channel in processor:
            mesh = self._block(weights, channel, mesh, _first(mesh, p, channel.total.shape[0] // p))
        out = self._block(*decoder, mesh, _first(grid, p, batch.rows[1]))
        head = parameters[4 + self.layers * size :]
        result = _affine(out, head[0], head[1])
        if self.skip:
            result = result + linear(_first(inputs, p, batch.rows[1]), head[2])
        return result.flatten(1)

    def _block(self, weights: list[Tensor], channel: Channel, senders: Tensor, receivers: Tensor) -> Tensor:
        """Return the receivers after one block, shape (p m, S, H); senders have the shape (p n, S or 1, H)."""
        act = _ACTIVATIONS[self.activation]
        edge, shift, w_e, w_s, w_r, b, w_v, w_a, c, w_o, c_o, *norm = weights
        static = _affine(act(_affine(channel.features[:, None], edge, shift)), w_e, b)
        sent = channel.operator.extend(linear(senders, w_s))
        heard = linear(receivers, w_r)
        if heard.shape[1] == sent.shape[1]:
            state = static + _gathered(channel.join, torch.cat([sent, heard]))
        else:  # mesh nodes before the first message are the same for all samples
            state = (static + _gathered(channel.receive, heard)) + _gathered(channel.send, sent)
        total = _gathered(channel.total, act(state))
        change = _affine(act(linear(receivers, w_v) + _affine(total, w_a, c)), w_o, c_o)
        return receivers + (_normed(change, *norm) if norm else change)


def _first(state: Tensor, parts: int, rows: int) -> Tensor:
    """Return the first `rows` nodes of every graph from a state of shape (p r, S, H)."""
    if len(state) == parts * rows:
        return state
    return state.reshape(parts, len(state) // parts, *state.shape[1:])[:, :rows].flatten(0, 1)


def _gathered(matrix: Sparse, state: Tensor) -> Tensor:
    """Return A H, for all samples at once."""
    return (matrix @ state.flatten(1)).view(matrix.shape[0], *state.shape[1:])


def _affine(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return H W + b."""
    if weight.dim() == 2:
        return torch.addmm(bias, state.flatten(0, -2), weight).view(*state.shape[:-1], weight.shape[1])
    blocks = state.reshape(len(weight), -1, weight.shape[1])
    return torch.baddbmm(bias[:, None], blocks, weight).view(*state.shape[:-1], weight.shape[2])


def _normed(state: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Normalise over the last axis, then times 1 + gain, plus shift."""
    unit = torch.nn.functional.layer_norm(state, state.shape[-1:], eps=_EPSILON)
    if gain.dim() == 1:
        return unit * (1.0 + gain) + shift
    blocks = unit.reshape(len(gain), -1, gain.shape[1])
    return (blocks * (1.0 + gain[:, None]) + shift[:, None]).view(state.shape)
