"""The ranks of a run: communicator, sums, agreement, launchers, ranks to devices. MPI carries the messages here."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import count, waiting, way_to_install
from mldd.ranks.launchers import announced, by_mpi, by_torchrun, local_rank, local_ranks, unrelated_tasks

# mpiexec drops what it has not passed on when it hears of an abort: without a pause, one message in nine was lost.
_LAST_WORDS = 0.5  # seconds


def _staged(vector: Tensor) -> Tensor:
    """Return `vector` where MPI can read it: itself on the CPU, a copy from another device."""
    return vector.detach().contiguous().cpu()


_EXCHANGE = 71  # tag of the messages of `_exchange`, another one than that of halos


@dataclass(frozen=True)
class _Requests:
    """Several messages of MPI as one."""

    all: list[Any]

    def Test(self) -> bool:  # noqa: N802 (as MPI has it)
        """Return whether all of them have come."""
        return bool(type(self.all[0]).Testall(self.all))

    def Wait(self) -> None:  # noqa: N802 (as MPI has it)
        """Wait until all of them have come."""
        type(self.all[0]).Waitall(self.all)


@dataclass(frozen=True)
class Communicator:
    """The ranks of a run. Without MPI: one rank, and every call returns at once.

    What carries the messages is in the methods with an underscore, which `TorchCommunicator` has in its own way.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm or None
        What carries the messages; None for a single process.
    reports : mpi4py.MPI.Comm or None
        A duplicate for `agree`, so that reports of failure never meet the collectives of the work.
    """

    mpi: Any = None
    reports: Any = None

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return 0 if self.mpi is None else int(self.mpi.Get_rank())

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return 1 if self.mpi is None else int(self.mpi.Get_size())

    def sum(self, vector: Tensor) -> Tensor:
        """Sum `vector` over ranks in place and return it; one synchronisation.

        Parameters
        ----------
        vector : Tensor
            Contiguous or not, of the same shape on all ranks; it is overwritten.
        """
        count(synchronisations=1, sent=0 if self.ranks == 1 else vector.numel() * vector.element_size())
        if self.ranks > 1:
            staged = _staged(vector)
            with waiting():
                self._sum(staged)
            if staged.data_ptr() != vector.data_ptr():
                vector.copy_(staged)
        return vector

    def gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """Return the `rows` of all ranks, one rank's after the other's, on every rank; one synchronisation.

        Parameters
        ----------
        rows : Tensor, shape (m, ...)
            Those of this rank; they have the same trailing axes on all ranks.
        total : int, optional
            Where every rank has those of its ``share(total)``, their number is known. It is asked for otherwise, which
            is a scalar synchronisation.
        """
        count(synchronisations=1, sent=0 if self.ranks == 1 else rows.numel() * rows.element_size())
        if self.ranks == 1:
            return rows
        mine = _staged(rows)
        lengths = self.gather_items(len(mine)) if total is None else [len(part) for part in self.shares(total)]
        out = mine.new_empty((sum(lengths), *mine.shape[1:]))
        with waiting():
            self._gather(mine, out, lengths)
        return out.to(rows.device)

    def sum_scalars(self, values: list[float]) -> list[float]:
        """Return the sums over ranks of a few numbers; one scalar synchronisation.

        Parameters
        ----------
        values : list of float
            As many on all ranks.
        """
        count(scalar_synchronisations=1)
        if self.ranks == 1:
            return values
        buffer = torch.tensor(values, dtype=torch.float64)
        with waiting():
            self._sum(buffer)
        return [float(v) for v in buffer]

    def sum_values(self, values: Tensor) -> Tensor:
        """Return the sums over ranks of function values, shape () or (p,); one scalar synchronisation.

        Parameters
        ----------
        values : Tensor, shape () or (p,)
            Of this rank.
        """
        return values.new_tensor(self.sum_scalars(values.flatten().tolist())).view_as(values)

    def gather_items(self, item: Any) -> list[Any]:
        """Return the items of all ranks, in order, on every rank; one scalar synchronisation.

        Parameters
        ----------
        item : object
            Anything that can be pickled.
        """
        count(scalar_synchronisations=1)
        if self.ranks == 1:
            return [item]
        with waiting():
            return self._gather_items(item)

    def agree(self, failed: bool, patience: float = math.inf) -> int | None:
        """Wait until all ranks have reported; return the lowest that failed, or `ranks` if none did.

        None after `patience` seconds means that a rank is elsewhere, perhaps waiting for this one, and None at once
        that one has left: only `abort` helps.

        Parameters
        ----------
        failed : bool
            Whether this rank has failed.
        patience : float
            Seconds to wait.
        """
        if self.ranks == 1:
            return 0 if failed else 1
        report = torch.tensor([self.rank if failed else self.ranks])
        has_come = self._lowest(report)
        end = time.monotonic() + patience
        try:
            while not has_come():
                if time.monotonic() > end:
                    return None
                time.sleep(0.002)
        except ConnectionError:
            return None
        return int(report)

    def share(self, parts: int) -> range:
        """Return the contiguous range of `parts` that this rank holds (sizes differ by at most one).

        Parameters
        ----------
        parts : int
            Number of things that ranks share.
        """
        return self.shares(parts)[self.rank]

    def shares(self, parts: int) -> list[range]:
        """Return the contiguous ranges of `parts` that the ranks hold.

        Parameters
        ----------
        parts : int
            Number of things that ranks share.
        """
        ends = [k * parts // self.ranks for k in range(self.ranks + 1)]
        return [range(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]

    def abort(self, code: int = 1) -> None:
        """End all ranks at once, so that an error on one does not leave the others waiting.

        Parameters
        ----------
        code : int
            Exit status of the run.
        """
        if self.ranks > 1:
            time.sleep(_LAST_WORDS)
            self._end_all(code)

    # what carries the messages

    def _sum(self, vector: Tensor) -> None:
        """Sum a contiguous vector of the CPU over ranks, in place."""
        from mpi4py import MPI

        self.mpi.Allreduce(MPI.IN_PLACE, vector.numpy())

    def _gather(self, mine: Tensor, out: Tensor, lengths: list[int]) -> None:
        """Write the rows of all ranks to `out`; `lengths` says how many each has."""
        from mpi4py import MPI

        kind = {torch.float64: MPI.DOUBLE, torch.float32: MPI.FLOAT, torch.int64: MPI.INT64_T}[mine.dtype]
        sizes = [length * math.prod(mine.shape[1:]) for length in lengths]
        offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        self.mpi.Allgatherv(mine.numpy(), [out.numpy(), sizes, offsets, kind])

    def _exchange(self, out: list[Tensor], into: list[Tensor]) -> Any:
        """Begin to send a contiguous tensor of the CPU to every rank and to fill one from each.

        What is returned has the methods ``Test()`` and ``Wait()``, as MPI's requests have them.
        """
        from mpi4py import MPI

        kind = {torch.float64: MPI.DOUBLE, torch.float32: MPI.FLOAT}[out[0].dtype]
        requests = [self.mpi.Irecv([t.numpy(), kind], rank, _EXCHANGE) for rank, t in enumerate(into)]
        requests += [self.mpi.Isend([t.numpy(), kind], rank, _EXCHANGE) for rank, t in enumerate(out)]
        return _Requests(requests)

    def _gather_items(self, item: Any) -> list[Any]:
        """Return the items of all ranks."""
        return list(self.mpi.allgather(item))

    def _lowest(self, number: Tensor) -> Callable[[], bool]:
        """Begin to replace `number` by the lowest of all ranks; return what says whether it has come."""
        from mpi4py import MPI

        request = (self.reports or self.mpi).Iallreduce(MPI.IN_PLACE, number.numpy(), op=MPI.MIN)
        return lambda: bool(request.Test())

    def _deal(self, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Send so many of the int64 `rows` to each rank; return how many came from each, and these."""
        from mpi4py import MPI

        back = torch.empty_like(counts)
        self.mpi.Alltoall(counts.numpy(), back.numpy())
        got = torch.empty(int(back.sum()), dtype=torch.int64)
        self.mpi.Alltoallv(
            [rows.contiguous().numpy(), counts.numpy(), MPI.INT64_T], [got.numpy(), back.numpy(), MPI.INT64_T]
        )
        return back, got

    def _end_all(self, code: int) -> None:
        """End the processes of all ranks."""
        self.mpi.Abort(code)


SERIAL = Communicator()
_world: list[Communicator] = []


def world() -> Communicator:
    """Return the communicator of all ranks, or that of a single process.

    Ranks that torchrun has started speak through torch.distributed, those of an MPI launcher through MPI; only what is
    used is imported.

    Raises
    ------
    ImportError
        Started by an MPI launcher, but mpi4py is missing, or by torchrun, but torch has no torch.distributed.
    ValueError
        Started by srun as one of several tasks that do not know of each other, or by an MPI launcher that announces
        more ranks than the MPI library has.
    """
    if not _world and by_torchrun():
        from mldd.ranks.torch_distributed import TorchCommunicator

        _world.append(TorchCommunicator.of_torchrun())
    if unrelated_tasks() > 1:
        raise ValueError(
            f"srun started {unrelated_tasks()} tasks that do not know of each other and would all do the same run; use "
            "`srun --mpi=pmix` or `--mpi=pmi2` (`srun --mpi=list` says what there is), or torchrun"
        )
    if not _world and not by_mpi():
        return SERIAL
    if not _world:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(
                "started by an MPI launcher, but mpi4py cannot be imported "
                f"({error}); {way_to_install('mpi4py')}, or start a single process without mpiexec"
            ) from error
        if announced() > MPI.COMM_WORLD.Get_size():
            raise ValueError(
                f"the launcher announces {announced()} ranks, but the MPI library of mpi4py has "
                f"{MPI.COMM_WORLD.Get_size()}: all would do the same run; use the mpiexec of that library, or torchrun"
            )
        _world.append(Communicator(MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()))
    return _world[0]


def library() -> str:
    """Return version of mpi4py's MPI library and the number of ranks, or why there is none."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        return f"none ({error}); single-process methods run without"
    return f"{MPI.Get_library_version().splitlines()[0].strip()}, ranks {MPI.COMM_WORLD.Get_size()}"


def device(name: str = "auto", comm: Communicator = SERIAL) -> torch.device:
    """Return the device of this rank: ``cuda:(local rank mod GPUs)`` where there is a GPU and `name` names no other.

    Parameters
    ----------
    name : str
        auto, cpu, cuda, or cuda:NUMBER.
    comm : Communicator
        The ranks.

    Raises
    ------
    ValueError
        Unknown name, or CUDA asked for and not there.
    """
    if name not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d+", name):
        raise ValueError(f"`device` must be one of auto, cpu, cuda, cuda:NUMBER, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("`device` cuda needs a GPU that torch can see, got none; use --device cpu")
    number = int(name[5:]) if ":" in name else local_rank(comm.rank) % torch.cuda.device_count()
    if number >= torch.cuda.device_count():
        raise ValueError(f"`device` must be one of the {torch.cuda.device_count()} GPUs, counted from 0, got {name}")
    return torch.device("cuda", number)


def prepare(comm: Communicator) -> None:
    """Give each rank its share of the cores, at least one thread, and let malloc keep what is freed.

    Work on large vectors otherwise returns its temporaries to the system and gets them back page by page: keeping them
    halves the time of a stencil on 511 x 511 nodes. Where there is no glibc, malloc stays as it is.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks(comm.ranks)))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_max = -1, -4
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(mmap_max, 0)
