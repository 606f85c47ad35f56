"""The only file of the core that speaks MPI: communicator, sums, agreement of ranks, ranks to devices."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import count, waiting

# One of these is set in a process started by mpiexec, mpirun or srun.
_LAUNCHED = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PALS_RANKID", "MLDD_MPI")

# mpiexec drops what it has not passed on when it hears of an abort: without a pause, one message in nine was lost.
_LAST_WORDS = 0.5  # seconds


def _staged(vector: Tensor) -> Tensor:
    """Return `vector` where MPI can read it: itself on the CPU, a copy from another device."""
    return vector.detach().contiguous().cpu()


@dataclass(frozen=True)
class Communicator:
    """The ranks of a run. Without MPI: one rank, and every call returns at once.

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
        if self.mpi is not None and self.ranks > 1:
            staged = _staged(vector)
            with waiting():
                self.mpi.Allreduce(self._in_place(), staged.numpy())
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
        if self.mpi is None or self.ranks == 1:
            return rows
        mine = _staged(rows)
        lengths = self.gather_items(len(mine)) if total is None else [len(part) for part in self._shares(total)]
        out = mine.new_empty((sum(lengths), *mine.shape[1:]))
        sizes = [length * math.prod(mine.shape[1:]) for length in lengths]
        offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        with waiting():
            self.mpi.Allgatherv(mine.numpy(), [out.numpy(), sizes, offsets, self._datatype(mine)])
        return out.to(rows.device)

    def sum_scalars(self, values: list[float]) -> list[float]:
        """Return the sums over ranks of a few numbers; one scalar synchronisation.

        Parameters
        ----------
        values : list of float
            As many on all ranks.
        """
        count(scalar_synchronisations=1)
        if self.mpi is None or self.ranks == 1:
            return values
        buffer = torch.tensor(values, dtype=torch.float64)
        with waiting():
            self.mpi.Allreduce(self._in_place(), buffer.numpy())
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
        if self.mpi is None or self.ranks == 1:
            return [item]
        with waiting():
            return list(self.mpi.allgather(item))

    def agree(self, failed: bool, patience: float = math.inf) -> int | None:
        """Wait until all ranks have reported; return the lowest that failed, or `ranks` if none did.

        None after `patience` seconds means that a rank is elsewhere, perhaps waiting for this one: only `abort` helps.

        Parameters
        ----------
        failed : bool
            Whether this rank has failed.
        patience : float
            Seconds to wait.
        """
        if self.mpi is None or self.ranks == 1:
            return 0 if failed else 1
        from mpi4py import MPI

        report = torch.tensor([self.rank if failed else self.ranks])
        request = (self.reports or self.mpi).Iallreduce(MPI.IN_PLACE, report.numpy(), op=MPI.MIN)
        end = time.monotonic() + patience
        while not request.Test():
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        return int(report)

    def share(self, parts: int) -> range:
        """Return the contiguous range of `parts` that this rank holds (sizes differ by at most one).

        Parameters
        ----------
        parts : int
            Number of things that ranks share.
        """
        return self._shares(parts)[self.rank]

    def _shares(self, parts: int) -> list[range]:
        ends = [k * parts // self.ranks for k in range(self.ranks + 1)]
        return [range(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]

    def abort(self, code: int = 1) -> None:
        """End all ranks at once, so that an error on one does not leave the others waiting.

        Parameters
        ----------
        code : int
            Exit status of the run.
        """
        if self.mpi is not None and self.ranks > 1:
            time.sleep(_LAST_WORDS)
            self.mpi.Abort(code)

    def _in_place(self) -> Any:
        from mpi4py import MPI

        return MPI.IN_PLACE

    def _datatype(self, vector: Tensor) -> Any:
        from mpi4py import MPI

        return {torch.float64: MPI.DOUBLE, torch.float32: MPI.FLOAT, torch.int64: MPI.INT64_T}[vector.dtype]


SERIAL = Communicator()
_world: list[Communicator] = []


def world() -> Communicator:
    """Return the communicator of all ranks; mpi4py is imported only in a process started by an MPI launcher.

    Raises
    ------
    ImportError
        Started by a launcher, but mpi4py is missing.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        return SERIAL
    if not _world:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(
                "started by an MPI launcher, but mpi4py cannot be imported "
                f"({error}); install it with `pip install mldd[mpi]`, or start a single process without mpiexec"
            ) from error
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
    number = int(name[5:]) if ":" in name else _local_rank(comm) % torch.cuda.device_count()
    if number >= torch.cuda.device_count():
        raise ValueError(f"`device` must be one of the {torch.cuda.device_count()} GPUs, counted from 0, got {name}")
    return torch.device("cuda", number)


def _local_rank(comm: Communicator) -> int:
    for name in ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "PALS_LOCAL_RANKID"):
        if name in os.environ:
            return int(os.environ[name])
    return comm.rank


def _local_ranks(comm: Communicator) -> int:
    for name in ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE"):
        if name in os.environ:
            return int(os.environ[name])
    return comm.ranks


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
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // _local_ranks(comm)))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_max = -1, -4
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(mmap_max, 0)
