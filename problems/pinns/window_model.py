"""Window models: one small network per window of a partition of unity, as a solution of a differential equation.

The solution is ``u = g + l (sum_j w_j N_j(x_j) + C)``: windows w_j that are positive on overlapping boxes and sum to
one, networks N_j of the coordinates x_j in which their boxes are [-1, 1]^d, and, for two levels, one network C of the
whole domain; g and l build the boundary conditions in. All networks are evaluated in one batch, each at the points of
its window alone. Values and derivatives of u depend linearly on those of the networks, by coefficients that the product
rule gives once for all points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mldd.algebra import Price
from mldd.problems.pinns.equations import Equation, Known, jets_of
from mldd.problems.pinns.taylor import Streams, TaylorNetwork
from mldd.problems.pinns.window_loss import LocalWindows, Patch, WindowLoss
from mldd.ranks import Communicator


@dataclass(frozen=True)
class Member:
    """One network of a patch: its window (-1 for the whole domain), its points, and where they are in the fields.

    Parameters
    ----------
    window : int
        Number of the window, -1 for the whole domain.
    points : Tensor, shape (k,), int64
        Numbers of its points.
    places : Tensor, shape (k,), int64
        Where these points are in the fields.
    """

    window: int
    points: Tensor
    places: Tensor


@dataclass(frozen=True)
class WindowModel:
    """The networks of all windows, then the one of the whole domain if there is one, as functions of one vector.

    The windows are ``w_j = b_j / sum_i b_i`` with ``b_j = prod_k (1 + cos(pi (x_k - c_jk) / r_jk))^2`` inside a box
    with centre c_j and half widths r_j, zero outside; they have three continuous derivatives.

    Parameters
    ----------
    equation : Equation
        The differential equation.
    net : TaylorNetwork
        Of one window.
    centres, radii : Tensor, shape (w, d), float64
        Centres of the windows, and their half widths.
    coarse : TaylorNetwork, optional
        Of the whole domain.

    References
    ----------
    Moseley, Markham and Nissen-Meyer, arXiv 2107.07871 (windows and their normalised inputs); Dolean, Heinlein, Mishra
    and Moseley, arXiv 2306.05486 (the partition of unity by cosines, several levels).
    """

    equation: Equation
    net: TaylorNetwork
    centres: Tensor
    radii: Tensor
    coarse: TaylorNetwork | None = None

    @staticmethod
    def grid(equation: Equation, counts: Sequence[int], ratio: float) -> tuple[Tensor, Tensor]:
        """Return centres and half widths of windows on a grid, the outermost centres on the boundary.

        Parameters
        ----------
        equation : Equation
            The differential equation.
        counts : sequence of int, length d
            Windows along each coordinate.
        ratio : float
            Width of the windows over the distance between their centres; where there is one window along a coordinate,
            over the width of the domain. Windows cover the domain if it is greater than 1.
        """
        axes = [
            torch.linspace(0.0, 1.0, n, dtype=torch.float64) if n > 1 else torch.tensor([0.5]).double() for n in counts
        ]
        centres = torch.cartesian_prod(*axes).view(-1, len(counts))
        lower, upper = (torch.tensor(corner, dtype=torch.float64) for corner in (equation.lower, equation.upper))
        spaces = torch.tensor([max(1, n - 1) for n in counts])
        radii = ratio / 2 * (upper - lower) / spaces
        return equation.scaled(centres), radii.expand_as(centres).contiguous()

    @property
    def windows(self) -> int:
        """Number w of windows."""
        return len(self.centres)

    @property
    def blocks(self) -> list[int]:
        """Number of unknowns of every network."""
        return [self.net.layout.size] * self.windows + ([self.coarse.layout.size] if self.coarse else [])

    def initial(self, seed: int = 0) -> Tensor:
        """Return the start of every network, each drawn from a seed of its own; shape (n,), float64."""
        nets = [self.net] * self.windows + ([self.coarse] if self.coarse else [])
        return torch.cat([net.initial(seed * len(nets) + k) for k, net in enumerate(nets)])

    def inside(self, points: Tensor) -> Tensor:
        """Return which points, shape (m, d), every window is positive at, shape (w, m).

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        """
        return (self._bumps(points) > 0).T

    def weights(self, points: Tensor) -> Tensor:
        """Return all windows at points of shape (m, d), shape (m, w).

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        """
        bumps = self._bumps(points)
        return bumps / bumps.sum(1, keepdim=True)

    def _bumps(self, points: Tensor) -> Tensor:
        scaled = ((points.double()[:, None] - self.centres) / self.radii).clamp(-1.0, 1.0)
        return (1.0 + torch.cos(math.pi * scaled)).square().prod(-1)

    # -------------------------------------------------------------------------------- how fields depend on networks

    def _coefficients(self, at: Tensor, own: Tensor, radii: Tensor, streams: Streams) -> Tensor:
        """Return the derivatives of the streams of ``l w N`` with respect to those of N, shape (S, S, M)."""

        def share(points: Tensor) -> Tensor:
            factor = self.equation.factor(points)
            if int(own[0]) < 0:
                return factor
            return factor * self.weights(points).gather(1, own[:, None])

        c: Known = jets_of(share, at, self.equation.orders)
        table = at.new_zeros((streams.count, streams.count, len(at)))
        table[0, 0] = c.value[:, 0]
        for row, k in enumerate(streams.slopes, start=1):
            table[row, 0] = c.first[k][:, 0]
            table[row, row] = c.value[:, 0] / radii[:, k]
        slopes = {k: row for row, k in enumerate(streams.slopes, start=1)}
        for row, k in enumerate(streams.bends, start=1 + len(slopes)):
            table[row, 0] = c.second[k][:, 0]
            table[row, slopes[k]] = 2.0 * c.first[k][:, 0] / radii[:, k]
            table[row, row] = c.value[:, 0] / radii[:, k] ** 2
        return table

    def _slope(self, at: Tensor, streams: Streams) -> Tensor:
        """Return the derivatives of an affine residual with respect to the streams of u, shape (S, 1, M)."""
        with torch.enable_grad():
            u = at.new_zeros((streams.count, len(at), 1)).requires_grad_()
            r = self.equation.residual(streams.split(u), at)
            (slope,) = torch.autograd.grad(r.sum(), u, materialize_grads=True)
        return slope[:, None, :, 0]

    def patch(self, points: Tensor, members: Sequence[Member], extent: int, unknowns: slice | Tensor) -> Patch:
        """Return the networks of `members`, all of windows or the one of the whole domain, at their points.

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Those that the members number.
        members : sequence of Member
            Windows with their points, or the whole domain.
        extent : int
            Length of one field.
        unknowns : slice or Tensor
            Where the members' parameters lie.
        """
        width = max(len(member.points) for member in members)
        index, places, valid = (
            torch.stack([torch.nn.functional.pad(kind, (0, width - len(kind)), value=fill) for kind, fill in kinds])
            for kinds in (
                [(m.points, int(m.points[0])) for m in members],
                [(m.places, int(m.places[0])) for m in members],
                [(torch.ones_like(m.points), 0) for m in members],
            )
        )
        whole = members[0].window < 0
        own = torch.tensor([m.window for m in members], device=points.device)
        # what does not depend on unknowns is made in float64: windows are tiny near their edges
        corners = [self.equation.scaled(self.centres.new_full((1, points.shape[1]), c)) for c in (0.0, 1.0)]
        centres = ((corners[0] + corners[1]) / 2).expand(len(own), -1) if whole else self.centres[own]
        radii = ((corners[1] - corners[0]) / 2).expand(len(own), -1) if whole else self.radii[own]
        at, net = points[index].double(), self.coarse if whole and self.coarse else self.net
        streams = net.at(((at - centres[:, None]) / radii[:, None]).to(points), self.equation.orders)
        flat = at.flatten(0, 1)
        table = self._coefficients(flat, own.repeat_interleave(width), radii.repeat_interleave(width, 0), streams)
        if self.equation.linear:
            table = (self._slope(flat, streams) * table).sum(0, keepdim=True)
        table = (table.view(*table.shape[:2], *index.shape) * valid).permute(2, 0, 1, 3).to(points).contiguous()
        fields = extent * torch.arange(table.shape[1], device=points.device)
        return Patch(streams, table, (places[:, None] + fields[:, None]).flatten(), unknowns)

    def known(self, points: Tensor) -> Tensor:
        """Return the fields without networks at points of shape (m, d), shape (R, m).

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        """
        at = points.double()
        g: Known = jets_of(self.equation.lift, at, self.equation.orders)
        if self.equation.linear:
            return self.equation.residual(g, at)[None, :, 0].to(points)
        streams = self.net.at(at, self.equation.orders)
        kinds = [g.value, *(g.first[k] for k in streams.slopes), *(g.second[k] for k in streams.bends)]
        return torch.stack([kind[:, 0] for kind in kinds]).to(points)

    # -------------------------------------------------------------------------------- losses

    def loss(self, points: Tensor, total: int, price: Price, comm: Communicator | None) -> WindowLoss:
        """Return the mean squared residual over `points`, shape (m, d), the share of this rank of `total`.

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        total : int
            Number of points on all ranks.
        price : Price
            What one evaluation costs.
        comm : Communicator
            Its ranks divide the points.

        Raises
        ------
        ValueError
            A point in no window.
        """
        inside = self.inside(points)
        if not bool(inside.any(0).all()):
            x = points[~inside.any(0)][0].tolist()
            raise ValueError(f"windows must cover every point, got none at {x}; use wider ones or more")
        n, everywhere = self.net.layout.size, torch.arange(len(points), device=points.device)
        hit = [int(j) for j in inside.any(1).nonzero()]
        members = [Member(j, rows, rows) for j in hit for rows in [inside[j].nonzero()[:, 0]]]
        unknowns = torch.tensor(hit, device=points.device)[:, None] * n + torch.arange(n, device=points.device)
        patches = [self.patch(points, members, len(points), _sliced(unknowns.flatten()))]
        if self.coarse:
            member = Member(-1, everywhere, everywhere)
            patches.append(self.patch(points, [member], len(points), slice(self.windows * n, sum(self.blocks))))
        return WindowLoss(
            tuple(patches),
            self.known(points)[:, None],
            self.equation,
            (sum(self.blocks),),
            total,
            points=None if self.equation.linear else points[None],
            price=price,
            comm=comm,
        )

    def evaluations(self, points: Tensor) -> int:
        """Return at how many points the networks are evaluated, each network at the points of its own window.

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Collocation points.
        """
        return int(self.inside(points).sum()) + (len(points) if self.coarse else 0)

    def values(self, points: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that maps unknowns to u at points of shape (m, d), shape (m,).

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        """
        plain = replace(self.equation, orders=(0,) * self.equation.dim, linear=False)
        loss = replace(self, equation=plain).loss(points, len(points), Price(), None)
        return lambda x: loss.fields(x)[0, 0]

    def locals(self, whole: WindowLoss, points: Tensor, parts: Sequence[range], local: range) -> LocalWindows:
        """Return the local models of the `parts` (ranges of networks) with the numbers `local`.

        Parameters
        ----------
        whole : WindowLoss
            Over all `points`, shape (m, d).
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        parts : sequence of range
            Networks of every subdomain.
        local : range
            Subdomains of this rank.
        """
        mine = [parts[k] for k in local]
        inside = torch.cat([self.inside(points), torch.ones((1, len(points)), dtype=torch.bool, device=points.device)])
        unions = [inside[part.start : part.stop].any(0).nonzero()[:, 0] for part in mine]
        width, n = max((len(u) for u in unions), default=0), self.net.layout.size
        longest = max((sum(self.blocks[part.start : part.stop]) for part in mine), default=0)
        index = (
            torch.stack([torch.cat([u, u[:1].expand(width - len(u))]) for u in unions])
            if mine
            else points.new_empty((0, 0)).long()
        )
        valid = (
            torch.stack([torch.arange(width, device=points.device) < len(u) for u in unions]).to(points)
            if mine
            else points.new_empty((0, 0))
        )
        members: dict[bool, list[Member]] = {False: [], True: []}
        unknowns: dict[bool, list[Tensor]] = {False: [], True: []}
        for row, (part, union) in enumerate(zip(mine, unions, strict=True)):
            for j in part:
                is_coarse, rows = j == self.windows, inside[j].nonzero()[:, 0]
                places = row * width + torch.searchsorted(union, rows)
                members[is_coarse].append(Member(-1 if is_coarse else j, rows, places))
                begin = row * longest + (j - part.start) * n
                unknowns[is_coarse].append(torch.arange(begin, begin + self.blocks[j], device=points.device))
        patches = [
            self.patch(points, members[kind], index.numel(), _sliced(torch.cat(unknowns[kind])))
            for kind in (False, True)
            if members[kind]
        ]
        known = points.new_zeros((whole.frozen.shape[0], *index.shape))
        curved = None if self.equation.linear or not mine else points[index]
        evaluated = sum(len(member.points) for kind in members.values() for member in kind)
        share = evaluated / max(len(mine), 1) / self.evaluations(points)  # of one of the models
        price = Price(whole.price.gradient * share, fine=False, product=whole.price.product)
        batch = WindowLoss(
            tuple(patches), known, self.equation, (len(mine), longest), whole.total, curved, valid, None, price, None
        )
        return LocalWindows(whole, batch, index, valid)


def _sliced(unknowns: Tensor) -> slice | Tensor:
    """Return consecutive numbers as a slice: copying is then cheap."""
    first, last = int(unknowns[0]), int(unknowns[-1])
    return slice(first, last + 1) if bool((unknowns.diff() == 1).all()) else unknowns
