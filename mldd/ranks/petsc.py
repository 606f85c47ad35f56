"""The bridge to PETSc: vectors, matrices of transfers, and options.

PETSc is loaded when `petsc` is first called. Its scalars are double: a contiguous float64 tensor on the CPU shares its
memory with a Vec; every other tensor is copied and cast, here and nowhere else (`copies` counts it).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from mldd.algebra import IndexTransfer, MatrixTransfer, Transfer, way_to_install
from mldd.ranks.launchers import announced


@dataclass
class Copies:
    """What was copied between tensors and Vecs because they could not share memory.

    Attributes
    ----------
    vectors, bytes : int
        Number of copies, and their size.
    """

    vectors: int = 0
    bytes: int = 0

    def add(self, tensor: Tensor) -> None:
        """Count one copy of `tensor`.

        Parameters
        ----------
        tensor : Tensor
            What was copied.
        """
        self.vectors += 1
        self.bytes += tensor.numel() * tensor.element_size()


copies = Copies()
_arguments: list[str] = []  # options for the initialisation: PETSc says at its end which of them were not used


@cache
def load_petsc() -> Any:
    """Return the module ``petsc4py.PETSc``, initialised once.

    Options reach the database through `insert_options` and the environment variable ``PETSC_OPTIONS``. Where a script
    has initialised PETSc itself, that holds.

    Raises
    ------
    ImportError
        petsc4py is missing or broken.
    ValueError
        PETSc cannot begin with the options.
    """
    try:
        # PETSc calls BLAS on vectors: several threads of OpenBLAS only get into each other's way (three times slower at
        # 261 thousand unknowns on two cores). It reads this when it is loaded.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if announced() == 1:
            # UCX, through which MPI sends, notes all memory that is unmapped until a message is sent: a process without
            # other ranks would grow for ever.
            os.environ.setdefault("UCX_MEM_EVENTS", "n")
        import petsc4py

        printing: AbstractContextManager[list[str]] = _printed() if _arguments else nullcontext([])
        with printing as printed:
            petsc4py.init(["mldd", *_arguments])
            from petsc4py import PETSc

        with suppress(ValueError):  # not the main thread
            # PETSc aborts where a pipe breaks (`mldd info | head`); Python, which ignores the signal, raises an error.
            # It takes TERM, too, which ends a run at a safe point.
            for number in (signal.SIGPIPE, signal.SIGTERM):
                signal.signal(number, signal.getsignal(number) or signal.SIG_DFL)
    except ImportError as error:
        raise ImportError(
            f"PETSc is needed here, but petsc4py cannot be imported ({error}); "
            f"{way_to_install('petsc4py')}, or choose what needs none (solvers adagrad, lbfgs, schwarz; method metis)"
        ) from error
    except RuntimeError as error:  # of PETSc, which prints the reason on several lines
        found = [line.partition("ERROR: ")[2] for line in printed if "ERROR: " in line]
        reason = ", ".join([text for text in found if text and text[0] not in "-#"][:2]) or str(error)
        given = " ".join(_arguments)
        raise ValueError(f"PETSc cannot begin with the options {given!r}: {reason}; correct them") from error
    return PETSc


@contextmanager
def _printed() -> Iterator[list[str]]:
    """Collect the lines that C code prints on standard error; where nothing fails, they are printed afterwards."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        old = os.dup(2)
        os.dup2(file.fileno(), 2)
        failed = True
        try:
            yield lines
            failed = False
        finally:
            os.dup2(old, 2)
            os.close(old)
            file.seek(0)
            content = file.read()
            lines += content.decode(errors="replace").splitlines()
            if not failed:
                os.write(2, content)


def insert_options(options: Sequence[str]) -> None:
    """Put one-dash options of the command line, as in ``["-tao_view", "-tao_max_it", "10"]``, into the database.

    Parameters
    ----------
    options : sequence of str
        Names with one dash, each with at most one value behind it.

    Raises
    ------
    ValueError
        A value that follows no option.

    Examples
    --------
    >>> insert_options(["-coarse_tao_type", "blmvm"])
    >>> load_petsc().Options()["coarse_tao_type"]
    'blmvm'
    >>> load_petsc().Options().delValue("coarse_tao_type")
    """
    pairs: list[tuple[str, str | None]] = []
    for word in options:
        if re.match(r"-[A-Za-z]", word):  # PETSc's own rule: -1.5 is a value
            pairs.append((word, None))
        elif not pairs or pairs[-1][1] is not None:
            raise ValueError(f"PETSc options must be `-name` or `-name value`, got the value {word!r} without a name")
        else:
            pairs[-1] = (pairs[-1][0], word)
    if "petsc4py.PETSc" not in sys.modules:
        _arguments.extend(options)
    database = load_petsc().Options()
    for name, value in pairs:
        database.setValue(name, value)


def shares(tensor: Tensor) -> bool:
    """Return whether a Vec can live in the memory of `tensor`: float64, contiguous, on the CPU.

    Parameters
    ----------
    tensor : Tensor
        Any.
    """
    fits = np.dtype(load_petsc().ScalarType) == np.float64 and tensor.dtype == torch.float64
    return fits and tensor.device.type == "cpu" and tensor.is_contiguous()


def as_vec(tensor: Tensor, comm: Any = None) -> Any:
    """Return a Vec with the entries of `tensor`, in the same memory where that is possible.

    Torch does not see what PETSc writes: call ``torch.autograd.graph.increment_version`` where a gradient at the tensor
    may be remembered.

    Parameters
    ----------
    tensor : Tensor, shape (n,)
        This rank's entries.
    comm : petsc4py or mpi4py communicator, optional
        ``COMM_SELF`` by default.

    Returns
    -------
    Vec
        It keeps the memory alive. See `shares` and `copies`.
    """
    flat = tensor.detach()
    if not shares(flat):
        copies.add(flat)
    array = np.ascontiguousarray(flat.cpu().numpy(), dtype=load_petsc().ScalarType)
    comm = load_petsc().COMM_SELF if comm is None else comm
    return load_petsc().Vec().createWithArray(array, size=(array.size, None), comm=comm)


def as_tensor(vec: Any) -> Tensor:
    """Return the entries of `vec` on this rank as a tensor in the same memory.

    Parameters
    ----------
    vec : petsc4py.PETSc.Vec
        It must outlive the tensor.
    """
    return torch.from_numpy(vec.array)


def read(vec: Any, out: Tensor) -> Tensor:
    """Copy the entries of `vec` into `out`, shape (n,), of any dtype and on any device; return `out`.

    Parameters
    ----------
    vec : petsc4py.PETSc.Vec
        What is read.
    out : Tensor, shape (n,)
        What is written to.
    """
    if out.device.type != "cpu":
        copies.add(out)
        return out.copy_(torch.from_numpy(vec.array_r.copy()))
    if out.dtype != torch.float64:
        copies.add(out)
    np.copyto(out.numpy(), vec.array_r, casting="same_kind")
    increment_version(out)
    return out


def write(tensor: Tensor, vec: Any) -> None:
    """Copy the entries of `tensor`, of any dtype and on any device, into `vec`.

    Parameters
    ----------
    tensor : Tensor, shape (n,)
        What is read.
    vec : petsc4py.PETSc.Vec
        What is written to.
    """
    if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
        copies.add(tensor)
    vec.array_w[:] = tensor.detach().cpu().numpy()


@dataclass(frozen=True)
class _ShellMatrix:
    """The methods of a PETSc matrix of type python that stands for a Transfer."""

    transfer: Transfer
    like: Tensor

    def mult(self, mat: Any, e: Any, out: Any) -> None:
        """Write ``P e`` to `out`."""
        write(self.transfer.prolong(read(e, self.like.new_empty(self.transfer.shape[1]))), out)

    def multTranspose(self, mat: Any, g: Any, out: Any) -> None:  # noqa: N802 (PETSc's name)
        """Write ``P^T g`` to `out`."""
        write(self.transfer.restrict(read(g, self.like.new_empty(self.transfer.shape[0]))), out)


def matrix(transfer: Transfer, like: Tensor | None = None) -> Any:
    """Return `transfer` as a PETSc Mat on this rank.

    An `IndexTransfer` or a `MatrixTransfer` becomes an assembled AIJ matrix. Any other transfer becomes a matrix of
    type python with ``mult = prolong`` and ``multTranspose = restrict``.

    Parameters
    ----------
    transfer : Transfer
        What the matrix stands for.
    like : Tensor, optional
        A tensor of the dtype and on the device that `transfer` works with; float64 on the CPU by default.

    Returns
    -------
    Mat, shape ``transfer.shape``
    """
    if isinstance(transfer, IndexTransfer):
        columns = np.arange(transfer.shape[1])
        return _assembled(transfer.indices.cpu().numpy(), columns, np.ones(len(columns)), transfer.shape)
    if isinstance(transfer, MatrixTransfer):
        sparse = (transfer.matrix if transfer.matrix.is_sparse else transfer.matrix.to_sparse()).coalesce()
        rows, columns = sparse.indices().cpu().numpy()
        return _assembled(rows, columns, sparse.values().cpu().numpy(), transfer.shape)
    shell = _ShellMatrix(transfer, torch.empty(0, dtype=torch.float64) if like is None else like)
    mat = load_petsc().Mat().createPython(transfer.shape, shell, comm=load_petsc().COMM_SELF)
    mat.setUp()
    return mat


def _assembled(rows: Any, columns: Any, values: Any, shape: tuple[int, int]) -> Any:
    """Return the AIJ matrix with these entries, none twice, in any order."""
    order = np.lexsort((columns, rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(load_petsc().IntType)
    csr = (starts, columns[order].astype(load_petsc().IntType), values[order].astype(load_petsc().ScalarType))
    return load_petsc().Mat().createAIJ(shape, csr=csr, comm=load_petsc().COMM_SELF)
