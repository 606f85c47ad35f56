"""Diagonal initial matrices of quasi-Newton methods, one number per row of every weight matrix of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldd.algebra import Layout, Objective, layers_of

_SMOOTHING = 0.1  # share of its tensor's mean in the sums of a row: rows that hardly moved say little by themselves
_RANGE = 1e8  # largest ratio of a scale to the common one


@dataclass(frozen=True, eq=False)
class Rows:
    r"""Blocks of the unknowns of a network, and the secant scaling ``H_0 = sum_r gamma_r P_r R_r`` over them.

    A block is what one input feeds: a row of a weight matrix (in, out), a whole bias. Its curvature is governed by the
    second moment of that input, which differs by orders of magnitude between rare features, frequent ones and the
    constant one of a bias. From a secant pair (s, y), with the sums ``a_r = |R_r s|^2`` and ``b_r = |R_r y|^2``, both
    smoothed by the mean over the rows of the same tensor,

        gamma_r = c sqrt(a_r / b_r),    c = <s, y> / sum_r sqrt(a_r / b_r) |R_r y|^2,

    so that ``<y, H_0 y> = <s, y>`` as for the usual ``gamma I``, which it is when there is one block. It is an additive
    Schwarz preconditioner with one number per subdomain of the unknowns.

    Parameters
    ----------
    lengths : Tensor, shape (R,), int64
        Unknowns of every row, in order.
    counts : Tensor, shape (T,), int64
        Rows of every tensor, in order.
    row : Tensor, shape (n,), int64
        The row of every unknown.

    References
    ----------
    The geometric mean of the two step lengths of Barzilai and Borwein, IMA J. Numer. Anal. 8 (1988), block by block;
    Gilbert and Lemarechal, Math. Program. 45 (1989), for diagonal initial matrices that are updated by secant pairs.
    """

    lengths: Tensor
    counts: Tensor
    row: Tensor

    @staticmethod
    def of(layout: Layout, device: torch.device | str = "cpu") -> Rows:
        """Return the rows of all tensors: the first axes number them, the last one is their length.

        Parameters
        ----------
        layout : Layout
            Of the network.
        device : torch.device | str
            Where the rows are needed.

        Examples
        --------
        >>> rows = Rows.of(Layout(((3, 2), (2,))))
        >>> rows.lengths.tolist(), rows.counts.tolist()
        ([2, 2, 2, 2], [3, 1])
        """
        last = [shape[-1] if shape else 1 for shape in layout.shapes]
        counts = torch.tensor([size // width for size, width in zip(layout.sizes, last, strict=True)])
        lengths = torch.repeat_interleave(torch.tensor(last), counts)
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return Rows(lengths.to(device), counts.to(device), row.to(device))

    def scales(self, s: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return gamma for every unknown in `out`, shape (n,), from a pair with ``<s, y> > 0``.

        Parameters
        ----------
        s : Tensor, shape (n,)
            Step.
        y : Tensor, shape (n,)
            Difference of gradients.
        out : Tensor, shape (n,)
            Where the result is written to.
        """
        sums = torch.stack([self._sums(s), self._sums(y)])
        moved, turned = torch.lerp(sums, self._means(sums), _SMOOTHING)
        gamma = (moved / turned).sqrt_()
        known = torch.isfinite(gamma) & (gamma > 0)  # a tensor without any change of its gradient tells nothing
        common = (sums[0].sum() / sums[1].sum()).sqrt()
        gamma = torch.where(known, gamma, common).clamp_(common / _RANGE, common * _RANGE)
        gamma.mul_(torch.dot(s, y) / torch.dot(gamma, sums[1]))
        return torch.index_select(gamma, 0, self.row, out=out)

    def _sums(self, v: Tensor) -> Tensor:
        """Return the sum of squares of every row, shape (R,)."""
        return torch.segment_reduce(v.square(), "sum", lengths=self.lengths)

    def _means(self, sums: Tensor) -> Tensor:
        """Return the mean over the rows of the same tensor, of the shape of `sums`, (2, R)."""
        lengths = self.counts.expand(2, -1).contiguous()
        means = torch.segment_reduce(sums, "mean", lengths=lengths, axis=1)
        return torch.repeat_interleave(means, self.counts, dim=1)


def layout_of(f: Objective, size: int) -> Layout | None:
    """Return the layout of the network behind `f` or what it is composed of, None where there is none of this size.

    Parameters
    ----------
    f : Objective
        The objective.
    size : int
        Number of unknowns.
    """
    nets = (layer.net for layer in layers_of(f) if hasattr(layer, "net"))
    layouts = (net.layout for net in nets if isinstance(getattr(net, "layout", None), Layout))
    return next((layout if layout.size == size else None for layout in layouts), None)
