"""The ranks of a run that torchrun has started: the communicator over torch.distributed.

Tensors go through the memory of the host, by gloo: it carries all types that are needed, between any devices.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.ranks.communicator import Communicator


@dataclass(frozen=True)
class TorchCommunicator(Communicator):
    """The ranks of a process group of torch.distributed.

    Parameters
    ----------
    mpi, reports : None
        Not used.
    group : torch.distributed.ProcessGroup or None
        What carries the messages, by gloo.
    quiet : torch.distributed.ProcessGroup or None
        A second one for `agree`, so that reports of failure never meet the collectives of the work.
    """

    group: Any = None
    quiet: Any = None

    @staticmethod
    def of_torchrun() -> TorchCommunicator:
        """Return the communicator of all processes that torchrun has started; a group of the user's own stays as is.

        Raises
        ------
        ImportError
            This torch has no torch.distributed.
        """
        import torch.distributed as dist

        if not dist.is_available():
            raise ImportError(
                "started by torchrun, but this torch has no torch.distributed; install one that has, or use mpiexec"
            )
        if not dist.is_initialized():
            dist.init_process_group("gloo")
            atexit.register(_leave)
        made = TorchCommunicator(group=dist.new_group(backend="gloo"), quiet=dist.new_group(backend="gloo"))
        dist.barrier(group=made.quiet)  # a rank that ends early must not break connections that others still make
        return made

    @property
    def rank(self) -> int:
        """Number of this rank."""
        import torch.distributed as dist

        return dist.get_rank(self.group)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        import torch.distributed as dist

        return dist.get_world_size(self.group)

    def _sum(self, vector: Tensor) -> None:
        import torch.distributed as dist

        dist.all_reduce(vector, group=self.group)

    def _gather(self, mine: Tensor, out: Tensor, lengths: list[int]) -> None:
        import torch.distributed as dist

        longest = max(lengths)  # gloo gathers equal shapes
        padded = mine.new_zeros((longest, *mine.shape[1:]))
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded, group=self.group)
        torch.cat([rows[:length] for rows, length in zip(found, lengths, strict=True)], out=out)

    def _exchange(self, out: list[Tensor], into: list[Tensor]) -> Any:
        import torch.distributed as dist

        into[self.rank].copy_(out[self.rank])
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        works = [dist.irecv(into[rank], rank, group=self.group) for rank in others if into[rank].numel()]
        works += [dist.isend(out[rank], rank, group=self.group) for rank in others if out[rank].numel()]
        return _Works([work for work in works if work is not None])

    def _gather_items(self, item: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, item, group=self.group)
        return found

    def _lowest(self, number: Tensor) -> Callable[[], bool]:
        import torch.distributed as dist

        work = dist.all_reduce(number, op=dist.ReduceOp.MIN, group=self.quiet, async_op=True)

        def has_come() -> bool:
            if not work.is_completed():
                return False
            try:
                work.wait()
            except RuntimeError as error:  # completed by the end of another rank: `number` is not the lowest
                raise ConnectionError(str(error)) from error
            return True

        return has_come

    def _deal(self, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # gloo has no such collective; it is for set-up alone
        dealt = self._gather_items([part.clone() for part in torch.split(rows, counts.tolist())])
        mine = [parts[self.rank] for parts in dealt]
        return torch.tensor([len(part) for part in mine]), torch.cat(mine)

    def _end_all(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # torchrun ends the others when one has failed


def _leave() -> None:
    """End the threads of the process group: at the end of Python they would abort the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class _Works:
    """Several messages of torch.distributed as one."""

    all: list[Any]

    def Test(self) -> bool:  # noqa: N802 (as MPI has it)
        """Return whether all of them have come."""
        return all(work.is_completed() for work in self.all)

    def Wait(self) -> None:  # noqa: N802 (as MPI has it)
        """Wait until all of them have come."""
        for work in self.all:
            work.wait()


@dataclass(frozen=True)
class TorchMessages:
    """Messages by torch.distributed: receives are posted before sends.

    Attributes
    ----------
    comm : TorchCommunicator
        The ranks.
    readers, owners : tuple of (int, slice)
        Neighbours, with their parts of the packed rows.
    """

    comm: TorchCommunicator
    readers: tuple[tuple[int, slice], ...]
    owners: tuple[tuple[int, slice], ...]

    def start(self, send: Tensor, receive: Tensor, *, back: bool) -> Any:
        """Post the messages."""
        import torch.distributed as dist

        out, into = (self.owners, self.readers) if back else (self.readers, self.owners)
        group = self.comm.group
        works = [dist.irecv(receive[part].view(torch.uint8), rank, group=group) for rank, part in into]
        works += [dist.isend(send[part].view(torch.uint8), rank, group=group) for rank, part in out]

        def wait() -> None:
            for work in works:
                if work is not None:
                    work.wait()

        return wait
