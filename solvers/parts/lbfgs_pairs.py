"""The limited memory of L-BFGS, for one vector and for the rows of a batch: secant pairs and their direction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mldd.algebra import Objective, layers_of
from mldd.loop import REPLICATED
from mldd.solvers.parts.row_scaling import Rows, layout_of


@dataclass
class LbfgsPairs:
    """The last secant pairs ``s = x_+ - x``, ``y = g_+ - g``, and the initial matrix that the newest one gives.

    They are in a ring with a spare row: a pair is written there before its curvature is known, and one that is refused
    leaves the others alone.

    Attributes
    ----------
    steps, differences : Tensor, shape (memory + 1, n)
        The pairs s and y.
    curvatures : list of float
        ``<s, y>`` of each row.
    scale : float
        ``<s, y> / <y, y>`` of the newest pair.
    scales : Tensor, shape (n,)
        The diagonal initial matrix of the newest pair; empty with a scalar one.
    rows : Rows or None
        Blocks of the diagonal initial matrix.
    count, newest : int
        Number of pairs in the ring, and the row of the newest.
    """

    steps: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=REPLICATED)
    differences: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=REPLICATED)
    curvatures: list[float] = field(default_factory=list)
    scale: float = 1.0
    scales: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    rows: Rows | None = field(default=None, repr=False)
    count: int = 0
    newest: int = -1

    @staticmethod
    def empty(x: Tensor, memory: int, rows: Rows | None = None) -> LbfgsPairs:
        """Return room for pairs of vectors like `x`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            It gives length, type and device.
        memory : int
            Most pairs.
        rows : Rows, optional
            Blocks of a diagonal initial matrix; None for a scalar one.
        """
        return LbfgsPairs(
            steps=x.new_zeros(memory + 1, len(x)),
            differences=x.new_zeros(memory + 1, len(x)),
            curvatures=[1.0] * (memory + 1),
            scales=x.new_empty(0) if rows is None else torch.ones_like(x),
            rows=rows,
        )

    @property
    def last(self) -> tuple[Tensor, Tensor] | None:
        """The newest pair, None where there is none."""
        return (self.steps[self.newest], self.differences[self.newest]) if self.count else None

    @property
    def spare(self) -> tuple[Tensor, Tensor]:
        """The rows to write the next pair to, before `take`."""
        row = (self.newest + 1) % len(self.steps)
        return self.steps[row], self.differences[row]

    def push(self, s: Tensor, y: Tensor) -> None:
        """Add a pair, unless its curvature is lost in rounding.

        Parameters
        ----------
        s : Tensor, shape (n,)
            Step.
        y : Tensor, shape (n,)
            Difference of gradients.
        """
        for room, vector in zip(self.spare, (s, y), strict=True):
            room.copy_(vector)
        self.take()

    def take(self) -> None:
        """Make what was written to the spare rows the newest pair, unless its curvature is lost in rounding."""
        s, y = self.spare
        sy, yy, ss = float(torch.dot(s, y)), float(torch.dot(y, y)), float(torch.dot(s, s))
        if sy > torch.finfo(s.dtype).eps * math.sqrt(ss * yy):
            self.newest = (self.newest + 1) % len(self.steps)
            self.curvatures[self.newest], self.scale = sy, sy / yy
            if self.rows is not None:
                self.rows.scales(s, y, self.scales)
            self.count = min(self.count + 1, len(self.steps) - 1)

    def fault(self) -> str:
        """Return that a pair has another curvature than is kept, or none that is positive; empty if all is well."""
        for row in ((self.newest - k) % len(self.steps) for k in range(self.count)):
            s, y, kept = self.steps[row], self.differences[row], self.curvatures[row]
            sy, yy, ss = float(torch.dot(s, y)), float(torch.dot(y, y)), float(torch.dot(s, s))
            rounding = math.sqrt(torch.finfo(s.dtype).eps) * math.sqrt(ss * yy)
            if not (kept > 0 and rounding < math.inf and abs(sy - kept) <= rounding):
                return f"the curvature of a pair is {sy:.6g}, and was {kept:.6g}"
            if row == self.newest and not abs(self.scale * yy - kept) <= rounding:
                return f"the scale is {self.scale:.6g}, and was {kept / yy:.6g}"
        return ""

    def direction(self, g: Tensor, out: Tensor) -> Tensor:
        """Return ``-H g``, in `out`, by the two-loop recursion.

        Parameters
        ----------
        g : Tensor, shape (n,)
            Gradient.
        out : Tensor, shape (n,)
            Where the result is written to.

        References
        ----------
        Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4.
        """
        d = torch.neg(g, out=out)
        rows = [(self.newest - k) % len(self.steps) for k in range(self.count)]
        weights = []
        for row in rows:
            weight = float(torch.dot(self.steps[row], d)) / self.curvatures[row]
            d.add_(self.differences[row], alpha=-weight)
            weights.append(weight)
        if rows:
            d.mul_(self.scale if self.rows is None else self.scales)
        for row, weight in zip(reversed(rows), reversed(weights), strict=True):
            correction = weight - float(torch.dot(self.differences[row], d)) / self.curvatures[row]
            d.add_(self.steps[row], alpha=correction)
        return d


@dataclass
class RowPairs:
    """The last h curvature pairs of every row, in rings, and the direction they give.

    A pair is kept as ``s / sqrt(<s, y>)`` and ``y / sqrt(<s, y>)``, which changes nothing in the L-BFGS matrix and
    keeps the small triangular matrix well scaled. Empty places are zero and contribute nothing.

    Attributes
    ----------
    S, Y : Tensor, shape (p, h, m)
        The pairs s and y.
    M : Tensor, shape (p, h, h)
        ``<s_i, y_j>`` from the oldest pair to the newest; only its upper triangle is used.
    scale : Tensor, shape (p,)
        ``<s, y> / <y, y>`` of the newest pair.
    order : Tensor, shape (p, h), int64
        Places of S and Y from the oldest to the newest.
    count : Tensor, shape (p,), int64
        Number of pairs.
    """

    S: Tensor
    Y: Tensor
    M: Tensor
    scale: Tensor
    order: Tensor
    count: Tensor

    @staticmethod
    def empty(like: Tensor, memory: int) -> RowPairs:
        """Return `memory` empty places for every row of `like`, shape (p, m).

        Parameters
        ----------
        like : Tensor, shape (p, m)
            It gives shape, type and device.
        memory : int
            Most pairs.
        """
        p, m = like.shape
        S = like.new_zeros(p, memory, m)
        M = torch.eye(memory, dtype=like.dtype, device=like.device).repeat(p, 1, 1)
        order = torch.arange(memory, device=like.device).repeat(p, 1)
        return RowPairs(S, S.clone(), M, like.new_ones(p), order, order.new_zeros(p))

    def clear(self, rows: Tensor) -> None:
        """Forget the pairs of `rows`, shape (p,), bool.

        Parameters
        ----------
        rows : Tensor, shape (p,), bool
            Which rows.
        """
        self.S[rows] = 0.0
        self.Y[rows] = 0.0
        self.M[rows] = torch.eye(self.M.shape[1], dtype=self.M.dtype, device=self.M.device)
        self.scale[rows] = 1.0
        self.count[rows] = 0

    def push(self, s: Tensor, y: Tensor) -> None:
        """Add the pair of every row whose curvature is not lost in rounding; other rows keep what they have.

        Parameters
        ----------
        s : Tensor, shape (p, m)
            Steps.
        y : Tensor, shape (p, m)
            Differences of gradients.
        """
        sy, yy, ss = torch.linalg.vecdot(s, y), torch.linalg.vecdot(y, y), torch.linalg.vecdot(s, s)
        good = sy > torch.finfo(s.dtype).eps * (ss * yy).sqrt()
        rows = good.nonzero()[:, 0]
        if len(rows) == 0:
            return
        factor = sy.rsqrt()[:, None]
        order = self.order.roll(-1, 1)
        place, y = order[rows, -1], y * factor
        self.S[rows, place] = (s * factor)[rows]
        self.Y[rows, place] = y[rows]
        M = self.M.roll((-1, -1), (1, 2))
        M[:, :, -1] = torch.bmm(y[:, None], self.S.mT)[:, 0].gather(1, order)
        M[:, -1, -1] = 1.0
        count, scale = (self.count + 1).clamp_(max=self.S.shape[1]), sy / yy
        if len(rows) == len(good):
            self.M, self.order, self.count, self.scale = M, order, count, scale
            return
        self.M = torch.where(good[:, None, None], M, self.M)
        self.order = torch.where(good[:, None], order, self.order)
        self.count, self.scale = torch.where(good, count, self.count), torch.where(good, scale, self.scale)

    def direction(self, g: Tensor) -> Tensor:
        r"""Return ``-H g`` of every row, shape (p, m).

        The two loops of the recursion are two triangular systems: with M the upper triangle of ``S^T Y``, ``M a = S^T
        g``, ``q = g - Y a``, ``M^T c = a - scale Y^T q`` and ``H g = scale q + S c``.

        Parameters
        ----------
        g : Tensor, shape (p, m)
            Gradients.

        References
        ----------
        Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4.
        """
        order, scale = self.order[:, None], self.scale[:, None, None]
        a = torch.bmm(g[:, None], self.S.mT).gather(2, order)  # products with rows: with columns they are slow
        a = torch.linalg.solve_triangular(self.M, a.mT, upper=True).mT
        q = torch.baddbmm(g[:, None], torch.empty_like(a).scatter_(2, order, a), self.Y, alpha=-1.0).mul_(scale)
        c = a - torch.bmm(q, self.Y.mT).gather(2, order)
        c = torch.linalg.solve_triangular(self.M.mT, c.mT, upper=False).mT
        return torch.baddbmm(q, torch.empty_like(c).scatter_(2, order, c), self.S)[:, 0].neg_()


def rows_for(scaling: str, objective: Objective, x: Tensor) -> Rows | None:
    """Return the blocks of the initial matrix that `scaling` asks for, None for a scalar one.

    Parameters
    ----------
    scaling : {"scalar", "rows", "auto"}
        See `LBFGS`; an objective says with the class attribute ``reads_features = False`` that auto is scalar for it.
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        It gives length and device.

    Raises
    ------
    ValueError
        Rows are asked for where there is no network.
    """
    of_features = all(getattr(layer, "reads_features", True) for layer in layers_of(objective))
    takes_rows = scaling == "rows" or (scaling == "auto" and of_features)
    layout = layout_of(objective, len(x)) if takes_rows else None
    if layout is None and scaling == "rows":
        raise ValueError("`scaling` rows needs the objective of a network (`net.layout`), got another; use scalar")
    return None if layout is None else Rows.of(layout, x.device)
