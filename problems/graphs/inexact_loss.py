"""The loss of a graph in shards whose samples are evaluated with inexact halos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from mldd.algebra import Stochastic
from mldd.problems.graphs.inexact_halo import Inexact
from mldd.problems.graphs.node_loss import NodeLoss
from mldd.problems.nets import Batch, Dropout, HaloOperator
from mldd.ranks import Exchange


def with_inexact_halos(
    loss: NodeLoss, samples: Batch, halos: Sequence[Inexact | None], probability: float = 0.0, seed: int = 0
) -> Stochastic:
    """Return the exact loss, with samples per outer step that are evaluated with inexact halos (and dropout).

    Parameters
    ----------
    loss : NodeLoss
        The exact loss without dropout.
    samples : Batch
        The graph for samples: with dropout, its features are not yet propagated.
    halos : sequence of Inexact or None
        What stands for the halo of every layer, None where there is none.
    probability : float
        Of dropout.
    seed : int
        Of dropout.
    """

    def draw(step: int) -> NodeLoss:
        dropout = Dropout(probability, seed, step) if probability else None
        exact = replace(loss, batch=samples, dropout=dropout)
        batch = replaced(samples, [None if h is None else h.at(step) for h in halos])
        return _SampledLoss(loss.net, batch, loss.decay, loss.price, loss.comm, dropout, exact=exact)

    return Stochastic(loss, draw)


@dataclass(frozen=True)
class _SampledLoss(NodeLoss):
    """A sample; its Hessian products are those of the exact loss, as inexact derivatives have none.

    Parameters
    ----------
    exact : NodeLoss
    """

    exact: NodeLoss = field(default=None)  # type: ignore[assignment]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` of the exact loss."""
        return self.exact.hessian_product(x, v)


def replaced(batch: Batch, exchanges: list[Exchange | None]) -> Batch:
    """Return the batch with other exchanges, one per layer, None where nothing is exchanged.

    Parameters
    ----------
    batch : Batch
        What is evaluated.
    exchanges : list[Exchange | None]
        One per layer.
    """
    layers = [
        tuple(b.through(exchange) if isinstance(b, HaloOperator) and exchange is not None else b for b in layer)
        for layer, exchange in zip(batch.operators, exchanges, strict=True)
    ]
    return replace(batch, operators=tuple(layers))
