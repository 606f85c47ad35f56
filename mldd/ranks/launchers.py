"""What launchers (mpiexec, srun, torchrun) say in the environment; known before torch or MPI are loaded."""

from __future__ import annotations

import os

# One of these is set in a process started by mpiexec, mpirun or srun.
_MPI = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PALS_RANKID", "MLDD_MPI")
_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # srun names its tasks where PMIx names no size
_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torch.distributed reads, by whoever it is set
_RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID")


def by_torchrun() -> bool:
    """Return whether torchrun has started this process, or what sets its variables and none of MPI's.

    srun may have started torchrun, so this is asked first.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or (all(name in os.environ for name in _TORCH) and not by_mpi())


def by_mpi() -> bool:
    """Return whether a launcher that MPI understands has started this process."""
    return any(name in os.environ for name in _MPI)


def launched() -> bool:
    """Return whether a launcher has started this process as one of several ranks."""
    return by_torchrun() or any(name in os.environ for name in _RANK)


def launched_rank() -> int:
    """Return the number of this rank as the launcher says it, before any communicator is made; 0 without a launcher."""
    return _first(("RANK",) if by_torchrun() else _RANK, 0)


def announced() -> int:
    """Return how many ranks the launcher says there are; 1 without a launcher."""
    if by_torchrun():
        return _first(("WORLD_SIZE",), 1)
    return _first(_SIZE, 1) if by_mpi() else 1


def unrelated_tasks() -> int:
    """Return how many tasks srun has started that do not know of each other: all would do the same run."""
    return 1 if by_torchrun() or by_mpi() else _first(("SLURM_STEP_NUM_TASKS",), 1)


def local_rank(default: int) -> int:
    """Return the number of this rank on its machine.

    Parameters
    ----------
    default : int
        Where no launcher says it.
    """
    names = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "PALS_LOCAL_RANKID")
    return _first(("LOCAL_RANK",) if by_torchrun() else names, default)


def local_ranks(default: int) -> int:
    """Return the number of ranks on this machine.

    Parameters
    ----------
    default : int
        Where no launcher says it.
    """
    names = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE")
    return _first(("LOCAL_WORLD_SIZE",) if by_torchrun() else names, default)


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
