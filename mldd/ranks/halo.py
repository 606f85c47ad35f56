"""Halos: rows that neighbouring ranks own, fetched from them, and gradients of these rows, added to their owners'.

Every rank names, for each row of its halo, the rank that owns it and the row's number there; nobody needs an array of
the whole graph. ``begin`` packs the rows that others read and posts the messages, ``end`` waits for them: work that
needs no halo goes in between. The adjoint ``begin_back``, ``end_back`` sends gradients of halo rows to their owners,
which add them in the order of ranks, so that a sum is the same in every run. `exchange` is both as one differentiable
(linear) function.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from mldd.algebra import count
from mldd.ranks.communicator import SERIAL, Communicator
from mldd.ranks.halo_timing import clock
from mldd.ranks.messages import (
    Messages,
    Messenger,
    Nothing,
    Pending,
    RowBuffers,
    Slices,
    as_matrix,
    between,
    messenger,
    reads_devices,
    sent_to_owners,
    slices_of,
)

Map = Callable[[Tensor], Tensor]

# ------------------------------------------------------------------------------------------------ who reads what


class Exchange(Protocol):
    """What distributed operators need of a halo, be it exact or an approximation of one.

    Every method is called by all ranks in the same order; rows have the shape (n, ...) with equal trailing axes.
    """

    @property
    def comm(self) -> Communicator:
        """The ranks."""
        ...

    @property
    def own(self) -> int:
        """Number of rows that this rank owns."""
        ...

    @property
    def size(self) -> int:
        """Number of rows of the halo."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes that it holds."""
        ...

    def begin(self, rows: Tensor) -> Any:
        """Start fetching the halo of the own `rows`; return what `end` takes.

        Parameters
        ----------
        rows : Tensor, shape (n, ...)
            Own rows.
        """
        ...

    def end(self, pending: Any) -> Tensor:
        """Return the rows of the halo; they are overwritten by the next exchange of such rows.

        Parameters
        ----------
        pending : object
            What `begin` has returned.
        """
        ...

    def begin_back(self, rows: Tensor) -> Any:
        """Start sending gradients of the `rows` of the halo to their owners; return what `end_back` takes.

        Parameters
        ----------
        rows : Tensor, shape (h, ...)
            Gradients of the rows of the halo.
        """
        ...

    def end_back(self, pending: Any, into: Tensor) -> Tensor:
        """Add what others sent to `into`, the gradients of the own rows, in place, and return it.

        Parameters
        ----------
        pending : object
            What `begin_back` has returned.
        into : Tensor, shape (n, ...)
            Gradients of the own rows.
        """
        ...

    def exchange(self, rows: Tensor) -> Tensor:
        """Return the rows of the halo, a new tensor, differentiable in the own `rows`.

        Parameters
        ----------
        rows : Tensor, shape (n, ...)
            Own rows.
        """
        ...


@dataclass(frozen=True, eq=False)
class Halo:
    """The halo of this rank: rows of other ranks that it reads.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    own : int
        Number of rows that this rank owns.
    ranks : Tensor, shape (h,), int64
        Owner of every row of the halo, ascending.
    indices : Tensor, shape (h,), int64
        Number of the row among those of its owner.
    messages : {"auto", "mpi", "petsc"}
        What carries them; all ranks must ask for the same.
    staged : bool, optional
        Whether rows on a device go through pinned memory of the host; by default where MPI does not say that it can
        read the device's memory.

    Raises
    ------
    ValueError
        On all ranks, where on one of them owners do not ascend, are not among the other ranks, or have no such row,
        or `messages` is unknown.

    Examples
    --------
    A single rank has no halo, and exchanges nothing:

    >>> halo = Halo.none(3)
    >>> halo.exchange(torch.ones(3, 2)).shape
    torch.Size([0, 2])
    """

    comm: Communicator
    own: int
    ranks: Tensor
    indices: Tensor
    messages: Messages = "auto"
    staged: bool | None = None
    _plan: _Plan = field(default=None, repr=False)  # type: ignore[assignment]
    _kept: dict[Any, RowBuffers] = field(default_factory=dict, init=False, repr=False)
    _places: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Agree with the owners on what is sent, unless that is known."""
        if self._plan is None:
            object.__setattr__(self, "_plan", self._planned())

    @staticmethod
    def none(own: int, comm: Communicator = SERIAL) -> Halo:
        """Return the halo of a rank that reads nothing of others.

        Parameters
        ----------
        own : int
            Number of rows that this rank owns.
        comm : Communicator
            The ranks.
        """
        empty = torch.empty(0, dtype=torch.int64)
        return Halo(comm, own, empty, empty)

    @property
    def size(self) -> int:
        """Number h of rows."""
        return len(self.ranks)

    def _planned(self) -> _Plan:
        problem = _trouble(self)
        if self.comm.ranks == 1:
            if problem:
                raise ValueError(problem)
            return _Plan(torch.empty(0, dtype=torch.int64), (), Nothing())
        return _agreed(self, problem)

    @property
    def index(self) -> Tensor:
        """Own rows that are sent, reader by reader, shape (s,), int64: a row that k ranks read is in it k times."""
        return self._plan.index

    @property
    def readers(self) -> Tensor:
        """The rank that reads each of the rows sent, shape (s,), int64."""
        readers = torch.empty(len(self.index), dtype=torch.int64)
        for rank, part in self._plan.readers:
            readers[part] = rank
        return readers

    def part(self, read: Tensor, sent: Tensor) -> Halo:
        """Return the halo of the rows with a true entry in `read`, shape (h,), on the side of the owners `sent`, (s,).

        Nothing is agreed upon: both must follow from what reader and owner know. MPI carries the messages.

        Parameters
        ----------
        read : Tensor, shape (h,), bool
            Rows of this halo that are kept.
        sent : Tensor, shape (s,), bool
            Rows sent that others keep.
        """
        asked = torch.bincount(self.readers[sent], minlength=self.comm.ranks)
        wanted = torch.bincount(self.ranks[read], minlength=self.comm.ranks)
        carrier = between(self.comm, slices_of(asked), slices_of(wanted))
        plan = _Plan(self.index[sent], slices_of(asked), carrier)
        return Halo(self.comm, self.own, self.ranks[read], self.indices[read], "mpi", self.staged, plan)

    def apart(self) -> Halo:
        """Return the same halo with buffers of its own: exchanges of both may be under way at once."""
        return Halo(self.comm, self.own, self.ranks, self.indices, self.messages, self.staged, self._plan)

    @property
    def bytes(self) -> int:
        """Bytes of its indices and of the buffers that it keeps."""
        kept = [t for k in self._kept.values() for t in (k.packed, k.got, *(k.host or ()))]
        tensors = [self.ranks, self.indices, self._plan.index, *kept]
        return sum(t.numel() * t.element_size() for t in tensors)

    # -------------------------------------------------------------------------------- exchanges

    def begin(self, rows: Tensor) -> Pending:
        """Start fetching the halo of the own `rows`, shape (n, ...)."""
        with clock("begin"):
            kept = self._buffers("out", rows, len(self.index), self.size)
            torch.index_select(as_matrix(rows.detach()), 0, kept.index, out=kept.packed)
            return self._post(kept, rows, back=False)

    def send(self, packed: Tensor) -> Pending:
        """Start fetching the halo, given the rows that this rank sends; return what `end` takes.

        Parameters
        ----------
        packed : Tensor, shape (s, ...)
            Rows in the order of `index`.
        """
        with clock("begin"):
            return self._sent("out", packed.detach(), self.size)

    def end(self, pending: Pending) -> Tensor:
        """Return the rows of the halo, shape (h, ...); they are overwritten by the next exchange of such rows."""
        with clock("wait"):
            return pending.arrived()

    def begin_back(self, rows: Tensor) -> Pending:
        """Start sending gradients of the `rows` of the halo, shape (h, ...), to their owners."""
        with clock("begin"):
            return self._sent("back", rows.detach(), len(self.index))

    def end_back(self, pending: Pending, into: Tensor) -> Tensor:
        """Add what others sent to `into`, shape (n, ...), in place, rank by rank; return it."""
        with clock("wait"):
            return self.add(pending.arrived(), into)

    def add(self, rows: Tensor, into: Tensor) -> Tensor:
        """Add `rows`, one per row that this rank sends, to the own rows `into`, rank by rank, and return these.

        Parameters
        ----------
        rows : Tensor, shape (s, ...)
            In the order of `index`.
        into : Tensor, shape (n, ...)
            Own rows, which are written to.
        """
        flat, rows, index = as_matrix(into), as_matrix(rows), self._sent_on(into.device)
        for _, part in self._plan.readers:  # one neighbour asks for no row twice: no two additions meet
            flat.index_add_(0, index[part], rows[part])
        return into if flat.data_ptr() == into.data_ptr() else into.copy_(flat.view_as(into))

    def exchange(self, rows: Tensor) -> Tensor:
        """Return the rows of the halo, a new tensor, differentiable any number of times in the own `rows`."""
        if rows.requires_grad and torch.is_grad_enabled():
            return differentiable(self, rows)
        return self.end(self.begin(rows)).clone()

    def _sent_on(self, device: torch.device) -> Tensor:
        """Return the numbers of the rows that are sent, copied to the device once."""
        if device not in self._places:
            self._places[device] = self.index.to(device)
        return self._places[device]

    def _sent(self, way: str, packed: Tensor, received: int) -> Pending:
        kept = self._buffers(way, packed, len(packed), received)
        kept.packed.copy_(as_matrix(packed))
        return self._post(kept, packed, back=way == "back")

    def _buffers(self, way: str, rows: Tensor, sent: int, received: int) -> RowBuffers:
        width = math.prod(rows.shape[1:])
        key = way, width, rows.dtype, rows.device
        if key not in self._kept:
            through = self.staged
            if through is None:
                through = self.comm.ranks > 1 and rows.device.type != "cpu" and not reads_devices()
            self._kept[key] = RowBuffers.of(rows, width, sent, received, self._sent_on(rows.device), through)
        return self._kept[key]

    def _post(self, kept: RowBuffers, rows: Tensor, *, back: bool) -> Pending:
        if kept.busy:
            raise RuntimeError("an exchange must end before the next one of such rows begins, got two at once")
        kept.busy = True
        size = kept.packed.element_size() * kept.packed.shape[1]
        if self.comm.ranks > 1:
            count(halo_rows=len(kept.packed), halo_bytes=len(kept.packed) * size, exchanges=1)
        return Pending(kept, self._plan.messenger.start(*kept.sides(), back=back), tuple(rows.shape[1:]))


@dataclass(frozen=True)
class _Plan:
    """Own rows that others read, those of each reader, and what carries them."""

    index: Tensor
    readers: Slices
    messenger: Messenger


def _trouble(halo: Halo) -> str:
    """Say what is wrong with the owners, as far as this rank can see."""
    ranks, indices, comm = halo.ranks, halo.indices, halo.comm
    if halo.messages not in get_args(Messages):
        return f"`messages` must be one of {', '.join(get_args(Messages))}, got {halo.messages!r}"
    if ranks.dtype != torch.int64 or ranks.shape != indices.shape or indices.dtype != torch.int64 or ranks.dim() != 1:
        return f"owners of a halo must be int64 of equal shape (h,), got {tuple(ranks.shape)}, {tuple(indices.shape)}"
    if not len(ranks):
        return ""
    if int(ranks.min()) < 0 or int(ranks.max()) >= comm.ranks or bool((ranks == comm.rank).any()):
        span = f"{int(ranks.min())}..{int(ranks.max())}"
        return f"owners of a halo must be the other of {comm.ranks} ranks, got {span} on rank {comm.rank}"
    if not bool((ranks.diff() >= 0).all()):
        return "owners of a halo must ascend, got them in another order; sort the halo by owner"
    if bool(((ranks.diff() == 0) & (indices.diff() == 0)).any()):
        return "the halo must hold every row once, got one twice; leave out the second"
    return ""


def _agreed(halo: Halo, problem: str) -> _Plan:
    """Tell the owners what is read; one refusal is that of all ranks."""
    comm = halo.comm
    wanted = torch.bincount(halo.ranks, minlength=comm.ranks) if not problem else torch.zeros(comm.ranks).long()
    asked, index = sent_to_owners(comm, wanted, halo.indices if not problem else halo.indices[:0])
    if not problem and len(index) and (int(index.min()) < 0 or int(index.max()) >= halo.own):
        span = f"{int(index.min())}..{int(index.max())}"
        problem = f"rows that others read must be among the {halo.own} of rank {comm.rank}, got {span}"
    problems = [text for text in comm.gather_items(problem) if text]
    if problems:
        raise ValueError(problems[0])
    return _Plan(index, slices_of(asked), messenger(halo.messages, comm, halo.ranks, asked, wanted))


# ------------------------------------------------------------------------------------------------ differentiation


class _LinearExchange(torch.autograd.Function):
    """A linear map whose derivative is its adjoint."""

    @staticmethod
    def forward(ctx: Any, apply: Map, adjoint: Map, x: Tensor) -> Tensor:
        ctx.maps, ctx.context = (apply, adjoint), contextvars.copy_context()
        return apply(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:
        apply, adjoint = ctx.maps
        # Derivatives of what is on a device are computed by another thread, which has no ledger of its own.
        return None, None, ctx.context.run(linear, adjoint, apply, g)


def linear(apply: Map, adjoint: Map, x: Tensor) -> Tensor:
    """Return ``apply(x)``, differentiable any number of times: the derivative of a linear map is its adjoint.

    Both maps return new tensors, may communicate, and are called by all ranks at the same time.

    Parameters
    ----------
    apply, adjoint : callable
        The map and its adjoint.
    x : Tensor
        Where it is applied.
    """
    out: Tensor = _LinearExchange.apply(apply, adjoint, x)  # type: ignore[no-untyped-call]
    return out


def differentiable(halo: Exchange, rows: Tensor) -> Tensor:
    """Return the rows of the halo, a new tensor, as a function of the own `rows` whose derivative is the way back.

    Parameters
    ----------
    halo : Exchange
        What fetches them.
    rows : Tensor, shape (n, ...)
        Own rows.
    """

    def fetch(rows: Tensor) -> Tensor:
        return halo.end(halo.begin(rows)).clone()

    def give_back(g: Tensor) -> Tensor:
        return halo.end_back(halo.begin_back(g), g.new_zeros((halo.own, *g.shape[1:])))

    return linear(fetch, give_back, rows)
