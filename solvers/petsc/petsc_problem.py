"""PETSc's optimisers and nonlinear solvers, set up for an objective: callbacks evaluate it, PETSc does the rest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mldd.algebra import Hessian, Objective, Remembered, hessian, value_and_gradient, with_products, without_memory
from mldd.loop import State
from mldd.ranks import as_vec, load_petsc, read, write

UNLIMITED = 2**30  # one more is still a whole number of PETSc's
_REMEMBERED = 2  # an accelerator has a trial point and a preconditioned one, and goes on with either


@dataclass
class _Known:
    """What is known at a point."""

    x: Tensor
    g: Tensor
    value: float


class PetscProblem(ABC):
    """A TAO or SNES solver of any type, set up for an objective on this rank.

    Parameters
    ----------
    objective : Objective
        May be exchanged between iterations for one of the same size (another sample), see `renew`.
    x : Tensor, shape (n,)
        Start. Where `objective` remembers its gradient there, PETSc's first evaluation costs at most a value.
    type : str
        PETSc's name of the method; the option ``-tao_type`` or ``-snes_type`` (with the prefix) wins.
    prefix : str
        Of the options in PETSc's database that belong to this solver.
    configure : callable, optional
        Called with the TAO or SNES object before the options are read.

    Attributes
    ----------
    solver : PETSc.TAO or PETSc.SNES
        Destroyed with this object, which is its application context.
    error : BaseException or None
        What a callback has raised: PETSc would replace it by an error code.
    finite : bool
        Whether the last value or gradient was finite.
    inner : State or None
        State of the mldd solver that runs inside of PETSc, after its last step (type python).

    Raises
    ------
    ValueError
        A type that does not exist or does not fit the objective.
    """

    KIND: ClassVar[str]  # TAO or SNES

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        type: str,  # noqa: A002 (PETSc's word)
        prefix: str = "",
        configure: Callable[[Any], None] = lambda solver: None,
    ) -> None:
        petsc = load_petsc()
        self.objective = objective
        self.solver = getattr(petsc, self.KIND)().create(petsc.COMM_SELF)
        self.error: BaseException | None = None
        self.finite = True
        self.inner: State | None = None
        self.by_differences = False  # whether a Hessian is that of differences of gradients
        self._known: list[_Known] = []
        self._stamp = (0, -1)  # which state of which Vec the last gradient belongs to
        self._trial = torch.empty_like(x)
        if isinstance(objective, Remembered):
            self.learn(x, objective.gradient(x))
        self.solution = petsc.Vec().createSeq(objective.size, comm=petsc.COMM_SELF)
        self.owned: list[Any] = [self.solution]
        write(x, self.solution)
        try:
            type = petsc.Options(prefix).getString(f"{self.KIND.lower()}_type", type)  # noqa: A001
            self._check_type(type, {v for k, v in vars(self.solver.Type).items() if k.isupper()})
            self.solver.appctx = self  # a context that an option names asks for it while it is made
            self.solver.setOptionsPrefix(prefix)
            self.solver.setType(type)
            self._set_up(type)
            configure(self.solver)
            self.solver.setFromOptions()
            self._adopt(self.solver)
        except BaseException as error:
            self.destroy()
            raise (self.error or _of_python(error)) from None

    @abstractmethod
    def _check_type(self, type: str, known: set[str]) -> None:  # noqa: A002
        """Refuse a type that is not among `known`, those of this PETSc, or does not fit the objective."""

    @abstractmethod
    def _set_up(self, type: str) -> None:  # noqa: A002
        """Give the solver its callbacks and bounds."""

    def _adopt(self, solver: Any) -> None:
        """Be the application context of `solver`; refuse one of type python without a context of its own."""
        solver.appctx = self
        if solver.getType() == "python" and solver.getPythonContext() is None:
            raise ValueError(
                f"`type` python needs a `solver`, got none; write solver=NAME, or -{solver.getOptionsPrefix() or ''}"
                f"{self.KIND.lower()}_python_type mldd.solvers.petsc.petsc_types.NAME"
            )

    def _box(self) -> tuple[Any, Any]:
        """Return the bounds as two Vecs that are freed with this object."""
        lower, upper = as_vec(self.objective.bounds.lower.clone()), as_vec(self.objective.bounds.upper.clone())
        self.owned += [lower, upper]
        return lower, upper

    @property
    def plain(self) -> Objective:
        """The objective without its memory: PETSc's vectors change without torch's knowledge."""
        f: Objective = without_memory(self.objective)
        return f

    def renew(self, objective: Objective, x: Tensor) -> None:
        """Go on with `objective` from `x`; gradients of another sample are forgotten.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The point.
        """
        before, self.objective = self.plain, objective
        if self.plain is not before:
            self._known = []
            if isinstance(objective, Remembered):
                self.learn(x, objective.gradient(x))

    def guarded(self) -> _Guard:
        """Return a context that keeps the exception that leaves the block."""
        return _Guard(self)

    def learn(self, x: Tensor, g: Tensor, value: float = math.nan) -> None:
        """Remember that the gradient at `x` is `g`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        g : Tensor, shape (n,)
            Gradient there.
        value : float
            Value there, NaN where it is not known.
        """
        self._stamp = (0, -1)
        point = self._known.pop().x.copy_(x) if len(self._known) == _REMEMBERED else x.detach().clone()
        self._known.insert(0, _Known(point, g, value))

    def _recall(self, x: Tensor) -> _Known | None:
        return next((known for known in self._known if torch.equal(known.x, x)), None)

    def known_at(self, x: Tensor) -> Tensor | None:
        """Return the gradient at `x` if it is remembered.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        """
        known = self._recall(x)
        return None if known is None else known.g

    def known_at_solution(self, x: Tensor) -> Tensor | None:
        """Return the gradient at the current iterate, whose entries are `x`, if it is remembered.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        """
        if self._known and self._stamp == (self.solution.handle, self.solution.stateGet()):  # spares the comparison
            return self._known[0].g
        return self.known_at(x)

    def value(self, solver: Any, x: Any) -> float:
        """Return the value at the Vec `x`.

        Parameters
        ----------
        solver : PETSc.TAO or PETSc.SNES
            The object that asks.
        x : PETSc.Vec
            The point.
        """
        with self.guarded():
            return self._noted(float(self.plain.value(read(x, self._trial))))

    def gradient(self, solver: Any, x: Any, out: Any) -> None:
        """Write the gradient at the Vec `x` to the Vec `out`.

        Parameters
        ----------
        solver : PETSc.TAO or PETSc.SNES
            The object that asks.
        x : PETSc.Vec
            The point.
        out : PETSc.Vec
            Gets the gradient.
        """
        with self.guarded():
            at = read(x, self._trial)
            g = self.known_at(at)
            if g is None:
                g = self.plain.gradient(at)
                self._evaluated(x, g)
            write(g, out)

    def value_and_gradient(self, solver: Any, x: Any, out: Any) -> float:
        """Return the value at the Vec `x`, and write the gradient to `out`.

        Parameters
        ----------
        solver : PETSc.TAO or PETSc.SNES
            The object that asks.
        x : PETSc.Vec
            The point.
        out : PETSc.Vec
            Gets the gradient.
        """
        with self.guarded():
            at = read(x, self._trial)
            known = self._recall(at)
            if known is None:
                value, g = value_and_gradient(self.plain, at)
                known = self._evaluated(x, g, float(value))
            elif math.isnan(known.value):
                known.value = float(self.plain.value(at))
            write(known.g, out)
            return self._noted(known.value)

    def _evaluated(self, x: Any, g: Tensor, value: float = math.nan) -> _Known:
        self.learn(self._trial, g, value)
        self._stamp = (x.handle, x.stateGet())
        return self._known[0]

    def _noted(self, value: float) -> float:
        self.finite = math.isfinite(value)
        return value

    def _hessian(self) -> tuple[Any, Callable[..., None]]:
        """Return a Mat of type python with the Hessian's products, or differences of gradients; and what moves it."""
        matrix = _Hessian(self, self._trial)
        mat = load_petsc().Mat().createPython((self.objective.size,) * 2, matrix, comm=load_petsc().COMM_SELF)
        mat.setUp()
        self.owned.append(mat)
        return mat, lambda solver, x, H, P: matrix.move(x)

    def run(self) -> None:
        """Run PETSc's solver to its end.

        Raises
        ------
        RuntimeError
            PETSc reports an error, unless the objective was not finite (then `finite` is False).
        Exception
            What a callback has raised, as it was raised.
        """
        try:
            self._solve()
        except load_petsc().Error as error:
            raised = self.error or _of_python(error)
            if raised is not error:
                raise raised from None
            self.finite = self.finite and all(bool(torch.isfinite(known.g).all()) for known in self._known)
            if self.finite:
                text = str(error).strip().splitlines()
                kind = f"{self.KIND} type {self.solver.getType()!r}"
                raise RuntimeError(f"{kind} failed: {text[-1]} ({text[0]})") from error

    @abstractmethod
    def _solve(self) -> None:
        """Call PETSc's solver."""

    @abstractmethod
    def hand_over(self, end_of_iteration: Callable[[int], bool]) -> None:
        """Leave stopping to the caller, who says after iteration 0, 1, ... whether to end; no other test holds.

        PETSc's own tolerances and limits are switched off, after its options were read; a failed line search still ends
        it.

        Parameters
        ----------
        end_of_iteration : callable
            Gets the number of the iteration and returns whether to end.
        """

    def destroy(self) -> None:
        """Free what PETSc holds. The callbacks make cycles that Python's collector cannot see."""
        self.solver.destroy()
        for item in self.owned:
            item.destroy()
        self.owned, self._known = [], []


def _of_python(error: BaseException) -> BaseException:
    """Return the exception of Python code that PETSc reports as an error code, `error` itself where there is none."""
    found = error
    while isinstance(found, load_petsc().Error) and found.__cause__ is not None:
        found = found.__cause__
    return error if isinstance(found, load_petsc().Error) else found


class _Guard:
    """See `PetscProblem.guarded`; a class, because a generator costs more than the copy of a small vector."""

    def __init__(self, problem: PetscProblem) -> None:
        self._problem = problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._problem.error = error


class _Hessian:
    """The methods of a PETSc matrix of type python: ``v -> H(x) v + shift v`` by Hessian products of an objective."""

    def __init__(self, problem: PetscProblem, like: Tensor) -> None:
        self._problem = problem
        self._x, self._v, self._shift = torch.empty_like(like), torch.empty_like(like), 0.0
        self._here: Hessian | None = None

    def move(self, x: Any) -> None:
        """Take the Hessian at the Vec `x` from now on."""
        read(x, self._x)
        f = with_products(self._problem.plain)
        self._problem.by_differences = f is not self._problem.plain
        self._here = hessian(f, self._x)
        self._shift = 0.0

    def mult(self, mat: Any, v: Any, out: Any) -> None:
        """Write ``H v`` to `out`."""
        with self._problem.guarded():
            assert self._here is not None  # noqa: S101 (PETSc moves a Jacobian before it multiplies)
            product = self._here.product(read(v, self._v))
            self._problem.finite = self._problem.finite and math.isfinite(float(product.sum()))
            write(product.add(self._v, alpha=self._shift) if self._shift else product, out)

    def multTranspose(self, mat: Any, v: Any, out: Any) -> None:  # noqa: N802 (PETSc's name)
        """Write ``H^T v = H v`` to `out`."""
        self.mult(mat, v, out)

    def shift(self, mat: Any, amount: float) -> None:
        """Add `amount` times the identity: Newton methods do so where the Hessian is not positive definite."""
        self._shift += float(amount)
