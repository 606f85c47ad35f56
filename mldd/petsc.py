"""The bridge to PETSc: vectors, matrices of transfers, options, and small problems minimised by TAO.

PETSc is loaded when `petsc` is first called. Its scalars are double: a contiguous float64 tensor on the CPU shares its
memory with a Vec; every other tensor is copied and cast, here and nowhere else (`copies` counts it).
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from mldd.objective import Objective, Remembered, offers, value_and_gradient
from mldd.transfer import IndexTransfer, MatrixTransfer, Transfer

# TAO types that take no notice of bounds, and those that cannot do without a Hessian.
UNBOUNDED = frozenset({"lmvm", "nls", "ntr", "ntl", "cg", "nm", "owlqn"})
NEWTON = frozenset({"nls", "ntr", "ntl", "bnls", "bntr", "bntl", "tron", "gpcg"})


@dataclass
class Copies:
    """What was copied between tensors and Vecs because they could not share memory."""

    vectors: int = 0
    bytes: int = 0

    def add(self, tensor: Tensor) -> None:
        """Count one copy of `tensor`."""
        self.vectors += 1
        self.bytes += tensor.numel() * tensor.element_size()


copies = Copies()
_arguments: list[str] = []  # options for the initialisation: PETSc says at its end which of them were not used


@cache
def petsc() -> Any:
    """Return the module ``petsc4py.PETSc``, initialised once.

    Options reach the database through `insert_options` and the environment variable ``PETSC_OPTIONS``. Where a script
    has initialised PETSc itself, that holds.

    Raises
    ------
    ImportError
        petsc4py is missing or broken.
    """
    try:
        # PETSc calls BLAS on vectors: several threads of OpenBLAS only get into each other's way (three times slower at
        # 261 thousand unknowns on two cores). It reads this when it is loaded.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        import petsc4py

        petsc4py.init(["mldd", *_arguments])
        from petsc4py import PETSc
    except ImportError as error:
        raise ImportError(
            f"PETSc is needed here, but petsc4py cannot be imported ({error}); install it with "
            "`pip install petsc petsc4py`, or choose a solver that needs none (adagrad, lbfgs)"
        ) from error
    return PETSc


def insert_options(options: Sequence[str]) -> None:
    """Put one-dash options of the command line, as in ``["-tao_view", "-tao_max_it", "10"]``, into the database.

    Raises
    ------
    ValueError
        A value that follows no option.

    Examples
    --------
    >>> insert_options(["-coarse_tao_type", "blmvm"])
    >>> petsc().Options()["coarse_tao_type"]
    'blmvm'
    >>> petsc().Options().delValue("coarse_tao_type")
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
    database = petsc().Options()
    for name, value in pairs:
        database.setValue(name, value)


def shares(tensor: Tensor) -> bool:
    """Say whether a Vec can live in the memory of `tensor`: float64, contiguous, on the CPU."""
    fits = np.dtype(petsc().ScalarType) == np.float64 and tensor.dtype == torch.float64
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
    array = np.ascontiguousarray(flat.cpu().numpy(), dtype=petsc().ScalarType)
    comm = petsc().COMM_SELF if comm is None else comm
    return petsc().Vec().createWithArray(array, size=(array.size, None), comm=comm)


def as_tensor(vec: Any) -> Tensor:
    """Return the entries of `vec` on this rank as a tensor in the same memory."""
    return torch.from_numpy(vec.array)


def read(vec: Any, out: Tensor) -> Tensor:
    """Copy the entries of `vec` into `out`, shape (n,), of any dtype and on any device; return `out`."""
    if out.device.type != "cpu":
        copies.add(out)
        return out.copy_(torch.from_numpy(vec.array_r.copy()))
    if out.dtype != torch.float64:
        copies.add(out)
    np.copyto(out.numpy(), vec.array_r, casting="same_kind")
    increment_version(out)
    return out


def write(tensor: Tensor, vec: Any) -> None:
    """Copy the entries of `tensor`, of any dtype and on any device, into `vec`."""
    if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
        copies.add(tensor)
    vec.array_w[:] = tensor.detach().cpu().numpy()


@dataclass(frozen=True)
class _Shell:
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
    shell = _Shell(transfer, torch.empty(0, dtype=torch.float64) if like is None else like)
    mat = petsc().Mat().createPython(transfer.shape, shell, comm=petsc().COMM_SELF)
    mat.setUp()
    return mat


def _assembled(rows: Any, columns: Any, values: Any, shape: tuple[int, int]) -> Any:
    """Return the AIJ matrix with these entries, none twice, in any order."""
    order = np.lexsort((columns, rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(petsc().IntType)
    csr = (starts, columns[order].astype(petsc().IntType), values[order].astype(petsc().ScalarType))
    return petsc().Mat().createAIJ(shape, csr=csr, comm=petsc().COMM_SELF)


class _Hessian:
    """The methods of a PETSc matrix of type python: ``v -> H(x) v + shift v`` by Hessian products of an objective."""

    def __init__(self, problem: TaoProblem, like: Tensor) -> None:
        self._problem = problem
        self._x, self._v, self._shift = like.clone(), torch.empty_like(like), 0.0

    def move(self, x: Any) -> None:
        """Take the Hessian at the Vec `x` from now on."""
        read(x, self._x)
        self._shift = 0.0

    def mult(self, mat: Any, v: Any, out: Any) -> None:
        """Write ``H v`` to `out`."""
        with self._problem.guarded():
            product = self._problem.plain.hessian_product(self._x, read(v, self._v))  # type: ignore[attr-defined]
            write(product.add(self._v, alpha=self._shift) if self._shift else product, out)

    def shift(self, mat: Any, amount: float) -> None:
        """Add `amount` times the identity: Newton methods do so where the Hessian is not positive definite."""
        self._shift += float(amount)


class TaoProblem:
    """A TAO solver of any type, set up for an objective on this rank: callbacks evaluate it, TAO does the rest.

    Parameters
    ----------
    objective : Objective
        May be exchanged between iterations for one of the same size (another sample): assign to `objective`.
    x : Tensor, shape (n,)
        Start. If `objective` remembers its gradient there, TAO's first evaluation costs a value only.
    type : str
        TAO's name of the method; the option ``-tao_type`` (with the prefix) wins.
    prefix : str
        Of the options in PETSc's database that belong to this solver.
    configure : callable, optional
        Called with the TAO object before the options are read.

    Raises
    ------
    ValueError
        An unknown type, one that takes no notice of the bounds, or one that needs a Hessian that is not there.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        type: str,  # noqa: A002 (TAO's word)
        prefix: str = "",
        configure: Callable[[Any], None] = lambda tao: None,
    ) -> None:
        self.objective = objective
        self.error: BaseException | None = None
        self.finite = True
        self._fresh = isinstance(objective, Remembered)
        # Where the gradient was last evaluated, and that gradient.
        self.point = x.detach().clone()
        self.gradient: Tensor | None = objective.gradient(x) if self._fresh else None
        self._trial = torch.empty_like(self.point)
        self._stamp = (0, -1)
        self.tao = petsc().TAO().create(petsc().COMM_SELF)
        self.solution = petsc().Vec().createSeq(objective.size, comm=petsc().COMM_SELF)
        self._owned: list[Any] = [self.solution]
        write(self.point, self.solution)
        try:
            self._set_up(type, prefix, configure)
        except BaseException:
            self.destroy()
            raise

    def _set_up(self, type: str, prefix: str, configure: Callable[[Any], None]) -> None:  # noqa: A002
        tao, bounds = self.tao, self.objective.bounds
        tao.setOptionsPrefix(prefix)
        self._set_type(type)
        tao.setObjective(self._value)
        tao.setGradient(self._only_gradient)
        tao.setObjectiveGradient(self._value_and_gradient)
        if not bounds.is_free:
            box = [as_vec(bound.clone()) for bound in (bounds.lower, bounds.upper)]
            self._owned += box
            tao.setVariableBounds(tuple(box))
        if offers(self.objective, "hessian_product"):
            hessian = _Hessian(self, self.point)
            mat = petsc().Mat().createPython((self.objective.size,) * 2, hessian, comm=petsc().COMM_SELF)
            mat.setUp()
            self._owned.append(mat)
            tao.setHessian(lambda tao, x, H, P: hessian.move(x), mat, mat)
        configure(tao)
        tao.setFromOptions()
        self._check_type(tao.getType())

    def _set_type(self, type: str) -> None:  # noqa: A002
        known = sorted(v for k, v in vars(petsc().TAO.Type).items() if k.isupper())
        if type not in known:
            raise ValueError(f"`type` must be a TAO type of this PETSc, one of {' '.join(known)}, got {type!r}")
        self.tao.setType(type)

    def _check_type(self, type: str) -> None:  # noqa: A002
        if type in UNBOUNDED and not self.objective.bounds.is_free:
            raise ValueError(f"TAO type {type!r} ignores bounds, got an objective with bounds; use blmvm or bqnktr")
        if type in NEWTON and not offers(self.objective, "hessian_product"):
            raise ValueError(f"TAO type {type!r} needs an objective with `hessian_product`, got none; use bqnktr")

    @property
    def plain(self) -> Objective:
        """The objective without its memory: TAO's vectors change without torch's knowledge."""
        return self.objective.f if isinstance(self.objective, Remembered) else self.objective

    def guarded(self) -> _Guard:
        """Keep the exception that leaves the block: PETSc would replace it by an error code."""
        return _Guard(self)

    def solve(self) -> None:
        """Run TAO to its end.

        Raises
        ------
        RuntimeError
            PETSc reports an error, unless the objective was not finite (then `finite` is False).
        Exception
            What a callback has raised, as it was raised.
        """
        try:
            self.tao.solve(self.solution)
        except petsc().Error as error:
            if self.error is not None:
                raise self.error from None
            self.finite = self.finite and (self.gradient is None or bool(torch.isfinite(self.gradient).all()))
            if self.finite:
                text = str(error).strip().splitlines()
                raise RuntimeError(f"TAO type {self.tao.getType()!r} failed: {text[-1]} ({text[0]})") from error

    def destroy(self) -> None:
        """Free what PETSc holds. The callbacks make cycles that Python's collector cannot see."""
        self.tao.destroy()
        for item in self._owned:
            item.destroy()
        self._owned = []

    def _value(self, tao: Any, x: Any) -> float:
        with self.guarded():
            return self._noted(float(self.plain.value(read(x, self._trial))))

    def _only_gradient(self, tao: Any, x: Any, out: Any) -> None:
        with self.guarded():
            if not self._starts(x):
                self.gradient = self.plain.gradient(self._move(x))
            write(self._known(), out)

    def _value_and_gradient(self, tao: Any, x: Any, out: Any) -> float:
        with self.guarded():
            if self._starts(x):
                value = self.plain.value(self.point)
            else:
                value, self.gradient = value_and_gradient(self.plain, self._move(x))
            write(self._known(), out)
            return self._noted(float(value))

    def _move(self, x: Any) -> Tensor:
        """Copy `x` into `point` and note which state of which Vec that was."""
        self._stamp = (x.handle, x.stateGet())
        return read(x, self.point)

    def known_at(self, x: Tensor) -> Tensor | None:
        """Return the gradient at `x`, the current iterate, if it was the last one evaluated."""
        same = self._stamp == (self.solution.handle, self.solution.stateGet())  # spares the comparison
        return self.gradient if same or torch.equal(x, self.point) else None

    def _known(self) -> Tensor:
        assert self.gradient is not None
        return self.gradient

    def _starts(self, x: Any) -> bool:
        """Say whether the gradient at `x` is known from before the run: asked once."""
        fresh, self._fresh = self._fresh, False
        return fresh and torch.equal(read(x, self._trial), self.point)

    def _noted(self, value: float) -> float:
        self.finite = math.isfinite(value)
        return value


class _Guard:
    """See `TaoProblem.guarded`; a class, because a generator costs more than the copy of a small vector."""

    def __init__(self, problem: TaoProblem) -> None:
        self._problem = problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._problem.error = error


def tao_minimise(
    objective: Objective,
    x: Tensor,
    *,
    type: str = "bqnktr",  # noqa: A002
    prefix: str = "coarse_",
    max_steps: int = 50,
    atol: float = 1e-8,
) -> tuple[Tensor, int]:
    """Minimise a small `objective` over its bounds with TAO, on this rank.

    Parameters
    ----------
    objective : Objective
    x : Tensor, shape (n,)
        Start; not written to.
    type : str
        TAO's name of the method; Newton types need an objective with ``hessian_product``.
    prefix : str
        Options ``-<prefix>tao_...`` in PETSc's database win over the arguments.
    max_steps : int
    atol : float
        Bound on TAO's measure, the 2-norm of the projected gradient.

    Returns
    -------
    x : Tensor, shape (n,)
        The last iterate.
    reason : int
        TAO's converged reason: positive converged, negative not (-2: all steps used).

    Raises
    ------
    ValueError
        See `TaoProblem`.

    References
    ----------
    Balay et al., PETSc/TAO Users Manual, ANL-21/39, chapter "TAO: Optimization Solvers".
    """

    def configure(tao: Any) -> None:
        tao.setTolerances(gatol=atol, grtol=0.0, gttol=0.0)
        tao.setMaximumIterations(max_steps)

    problem = TaoProblem(objective, x, type, prefix, configure)
    try:
        problem.solve()
        return read(problem.solution, torch.empty_like(x)), int(problem.tao.getConvergedReason())
    finally:
        problem.destroy()
