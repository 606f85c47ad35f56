"""Any solver of mldd as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from mldd.algebra import Bounds, Decomposition, Layout, Price, Remembered, Subdomain, joined, local_restrictions
from mldd.loop import Solver, State, Status, pack, restore

Factory = Callable[[Decomposition], Solver]


class Optimizer(torch.optim.Optimizer):
    """A solver of mldd where torch expects an optimizer.

    A step is one step of the solver, which may evaluate the closure several times and at other points than where it
    ends; so the closure has to be the same function of the parameters during a step (from step to step it may be
    another one: mini-batches). A step that cannot be done says why in `status`, and warns once.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        As torch has it. They become views of one flat vector, so move or cast the module before. A group may bound its
        parameters by ``lower`` and ``upper``, for solvers that heed bounds.
    solver : Solver, or callable
        ``solver(decomposition)`` makes one for subdomains that are the groups of parameters.
    check : bool
        Look once whether the closure gives the same twice, if a step evaluates it several times, and whether function
        values are compared in less than float64; warn if so.

    Attributes
    ----------
    status : Status or None
        Why the last step could not be done or ended the solver's way; the next step starts the solver anew.
    solver_state : State or None
        What the solver remembers.

    Raises
    ------
    ValueError
        Parameters of several dtypes or devices, bounds that are no box, or a solver that is none.

    Notes
    -----
    Where the solver has a rate (``lr`` or ``rate``), the groups have it as ``lr``, the same for all of them, and
    torch's schedulers can change it. Hessian products, for solvers that ask for them, are differences of two gradients.

    Examples
    --------
    >>> from mldd.solvers import LBFGS
    >>> module = nn.Linear(1, 1).double()
    >>> optimizer = Optimizer(module.parameters(), LBFGS())
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (module(torch.ones(1, 1, dtype=torch.float64)) - 3).square().sum()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(10):
    ...     loss = optimizer.step(closure)
    >>> abs(float(loss)) < 1e-12
    True
    """

    def __init__(self, params: ParamsT, solver: Solver | Factory, *, check: bool = True) -> None:
        """Make the parameters views of one vector, and the solver, if it is to be made."""
        self._given, self._check = solver, check
        self._state: State | None = None
        self._loaded: dict[str, Any] | None = None
        self._status: Status | None = None
        self._told: set[str] = set()
        self._building = True
        super().__init__(params, {"lower": -math.inf, "upper": math.inf})
        self._building = False
        self._build()

    # -------------------------------------------------------------------------------- parameters and their groups

    def _build(self) -> None:
        """Flatten the parameters of all groups, in their order."""
        self._parameters: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]
        self._flat = joined(self._parameters)
        if not self._flat.dtype.is_floating_point:
            raise ValueError(f"parameters must be real floating point numbers, got {self._flat.dtype}")
        self._layout = Layout(tuple(tuple(p.shape) for p in self._parameters))
        self._views = self._layout.views(self._flat)
        self._x, self._good = self._flat.clone(), self._flat.clone()
        self._bounds = self._box()
        self._solver = self._made()
        self._rate = next((f.name for f in fields(self._solver) if f.name in ("lr", "rate")), None)  # type: ignore[arg-type]
        for group in self.param_groups:
            if self._rate is not None:
                group.setdefault("lr", getattr(self._solver, self._rate))
            elif "lr" in group:
                raise ValueError(f"`lr` is of no use to {type(self._solver).__name__}, got {group['lr']}; leave it out")

    def _sizes(self) -> list[int]:
        return [sum(p.numel() for p in group["params"]) for group in self.param_groups]

    def _box(self) -> Bounds:
        lower, upper = (
            torch.cat([self._flat.new_full((n,), g[k]) for n, g in zip(self._sizes(), self.param_groups, strict=True)])
            for k in ("lower", "upper")
        )
        bounds = Bounds(lower, upper)
        bounds.check(self._flat)
        if bool(torch.isinf(lower).all() and torch.isinf(upper).all()):
            return Bounds.free(len(lower), dtype=lower.dtype, device=lower.device)
        return bounds

    def _made(self) -> Solver:
        """Return the solver, made for the groups as subdomains if it is to be made."""
        solver = self._given
        if not _is_solver(solver) and callable(solver):
            owners = torch.repeat_interleave(torch.arange(len(self.param_groups)), torch.tensor(self._sizes()))
            indices = [(owners == k).nonzero().flatten() for k in range(len(self.param_groups))]
            subdomains = [Subdomain(i.to(self._flat.device), torch.ones_like(i, dtype=torch.bool)) for i in indices]
            decomposition = Decomposition(self._layout.size, subdomains, local_restrictions, blocks=self._layout.slices)
            solver = solver(decomposition)
        if not _is_solver(solver):
            raise ValueError(
                f"`solver` must be a solver of mldd or make one of a decomposition, got {type(solver).__name__}"
            )
        return solver  # type: ignore[return-value]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, before the first step.

        Parameters
        ----------
        param_group : dict[str, Any]
            As torch's optimizers take it.

        Raises
        ------
        ValueError
            After it.
        """
        if not self._building and (self._state is not None or self._loaded is not None):
            raise ValueError(
                "parameters must be added before the first step, got a group after it; make a new optimizer"
            )
        super().add_param_group(param_group)
        if not self._building:
            self._build()

    def _relink(self) -> None:
        """Take over parameters whose memory was exchanged since the last step."""
        for p, view in zip(self._parameters, self._views, strict=True):
            if p.data_ptr() == view.data_ptr() or p.numel() == 0:
                continue
            if p.dtype != view.dtype or p.device != view.device:
                raise ValueError(
                    f"parameters must stay {view.dtype} on {view.device} as the optimizer got them, got {p.dtype} on "
                    f"{p.device}; make the optimizer after .to()"
                )
            view.copy_(p.data)
            p.data = view

    # -------------------------------------------------------------------------------- a step

    @property
    def status(self) -> Status | None:
        """Why the last step could not be done, or None."""
        return self._status

    @property
    def solver_state(self) -> State | None:
        """What the solver remembers; None before the first step."""
        return self._state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step of the solver, and return the loss at its start.

        Parameters
        ----------
        closure : callable
            Clears the gradients, computes the loss, calls ``backward`` and returns the loss.

        Raises
        ------
        ValueError
            No closure, one that returns nothing, or rates that differ between groups.
        """
        if closure is None:
            raise ValueError(
                "`step` needs a closure that computes the loss anew, got none; write optimizer.step(closure) with "
                "zero_grad, loss, backward and return loss in the closure"
            )
        rate = self._follow_rate()
        self._relink()
        with torch.no_grad():
            x = self._bounds.project(self._flat, out=self._x)
            f = ClosureObjective(closure, self._flat, self._parameters, self._layout, self._bounds)
            try:
                loss, g = f.evaluate(x)
                if not bool(torch.isfinite(loss) & torch.isfinite(g).all()):
                    x.copy_(x if self._state is None else self._good)
                    self._end(Status.diverged)
                elif rate != 0:
                    self._good.copy_(x)
                    self._advance(f, x, g)
                    self._examine(f, loss, g)
            finally:
                self._flat.copy_(x)
        return loss

    def _follow_rate(self) -> float | None:
        """Take over the rate that the groups have now."""
        if self._rate is None:
            return None
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise ValueError(f"`lr` must be the same for all groups of parameters, got {sorted(rates)}")
        rate = rates.pop()
        if rate not in (0.0, getattr(self._solver, self._rate)):
            self._solver = replace(self._solver, **{self._rate: rate})  # type: ignore[type-var]
        return rate

    def _advance(self, f: ClosureObjective, x: Tensor, g: Tensor) -> None:
        objective = Remembered(f)
        objective.keep(x, g)
        try:
            state = self._ready(objective, x)
            y, self._state = self._solver.step(objective, x, state)
        except BaseException:
            x.copy_(self._good)
            raise
        self._state.step += 1
        if y is not x:
            x.copy_(y)
        self._end(self._state.status)

    def _ready(self, objective: Remembered, x: Tensor) -> Any:
        """Return the state to go on with: as it is or was loaded, or a fresh one where the solver could not go on."""
        state = self._state
        if state is None and self._loaded is not None:
            state, self._loaded = restore(self._solver.init(objective, x), self._loaded), None
        if state is None or state.status is not None:
            steps, state = (0 if state is None else state.step), self._solver.init(objective, x)
            state.step = steps
        return state

    def _end(self, status: Status | None) -> None:
        self._status = status
        if status is not None:
            if self._state is not None:
                self._state.status = status
            self._tell(status.name, f"{type(self._solver).__name__}: {status.advice}")

    def _tell(self, what: str, words: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(words, stacklevel=4)

    def _examine(self, f: ClosureObjective, loss: Tensor, g: Tensor) -> None:
        """Look once, after the first step with several evaluations, whether the closure gives the same twice."""
        if not self._check or f.evaluations == 1:
            return
        self._check = False
        again, g_again = f.evaluate(self._good)
        eps = torch.finfo(g.dtype).eps
        largest = float(torch.maximum(loss.abs(), again.abs()))
        noise, slack = float(torch.linalg.vector_norm(g_again - g)), float(torch.linalg.vector_norm(g))
        name = type(self._solver).__name__
        if not (float((again - loss).abs()) <= eps**0.75 * largest and noise <= eps**0.5 * slack + eps * largest):
            self._tell(
                "closure",
                f"the closure must give the same at the same parameters, got loss {float(loss):.9g} and then "
                f"{float(again):.9g}, with gradients that differ by {noise:.1e} (dropout, another mini-batch per call, "
                f"no zero_grad?); {name} evaluates it several times a step: fix the sample, or use a solver that "
                "evaluates it once (adam, sgd)",
            )
        if f.compared and g.dtype != torch.float64:
            self._tell(
                "float32",
                f"{name} compares function values, got {g.dtype}, which cannot tell them apart below a relative "
                f"difference of {eps:.0e}; for accurate minimisers use module.double()",
            )

    # -------------------------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Any]:
        """Return parameter groups and state of the solver as plain data, which ``torch.load`` reads without trust.

        Raises
        ------
        CheckpointError
            A solver whose memory lives outside of Python (TAO, SNES).
        """
        saved = self._loaded if self._state is None else pack(self._state, "state")
        return {**super().state_dict(), "mldd": {"solver": type(self._solver).__name__, "state": saved}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the parameters are loaded with their module.

        Parameters
        ----------
        state_dict : dict[str, Any]
            What was saved.

        Raises
        ------
        ValueError
            From another solver, or of parameters that do not fit (the solver's part of it at the next step).
        """
        mine, expected = state_dict.get("mldd"), type(self._solver).__name__
        if not isinstance(mine, dict) or mine.get("solver") != expected:
            got = mine.get("solver") if isinstance(mine, dict) else "that of another optimizer"
            raise ValueError(f"`state_dict` must be that of {expected}, got {got}; make the optimizer that was saved")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "mldd"})
        self._loaded, self._state, self._status = mine["state"], None, None
        self._check = self._check and self._loaded is None
        self._bounds = self._box()


@dataclass
class ClosureObjective:
    """The loss that a closure computes, as a function of the flat vector of its parameters.

    Parameters
    ----------
    closure : callable
        It returns the loss, after ``backward()``.
    flat : Tensor, shape (n,)
        The parameters are views of it; a point is written to it to be evaluated.
    parameters : list of Parameter
        The tensors of the flat vector.
    layout : Layout
        Where they lie in it.
    bounds : Bounds
        The box.
    price : Price
        Every evaluation costs a gradient.

    Attributes
    ----------
    evaluations : int
        Calls of the closure.
    compared : bool
        A value was asked for.
    """

    closure: Callable[[], Any]
    flat: Tensor
    parameters: list[nn.Parameter]
    layout: Layout
    bounds: Bounds
    price: Price = Price()  # noqa: RUF009 (frozen)
    evaluations: int = 0
    compared: bool = False
    _last: tuple[Tensor, int, Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self.flat)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Call the closure at `x`, shape (n,); return loss and gradient.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Where to evaluate.

        Raises
        ------
        ValueError
            The closure returns nothing.
        """
        self.price.of_gradient()
        self.evaluations += 1
        self.flat.copy_(x)
        with torch.enable_grad():
            loss = self.closure()
        if loss is None:
            raise ValueError("the closure must return the loss, got None; end it with `return loss`")
        value = torch.as_tensor(loss, dtype=x.dtype, device=x.device).detach().reshape(())
        g = self.layout.pack([torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters])
        self._last = (x, x._version, value, g)
        return value, g

    def _known(self, x: Tensor) -> tuple[Tensor, Tensor]:
        last = self._last
        return last[2:] if last is not None and last[0] is x and last[1] == x._version else self.evaluate(x)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape ()."""
        self.compared = True
        return self._known(x)[0]

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, shape (n,)."""
        return self._known(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        self.compared = True
        return self._known(x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``(g(x + t v) - g(x)) / t``, ``t = sqrt(eps) (1 + |x|) / |v|``: a closure offers no more."""
        norm = torch.linalg.vector_norm(v)
        if not bool(norm > 0):
            return torch.zeros_like(v)
        t = float(torch.finfo(x.dtype).eps ** 0.5 * (1 + torch.linalg.vector_norm(x)) / norm)
        g, here = self.gradient(x), self._last
        product = (self.evaluate(torch.add(x, v, alpha=t))[1] - g).div_(t)
        self._last = here  # the next product at x needs it again
        return product


def _is_solver(thing: object) -> bool:
    return hasattr(thing, "init") and hasattr(thing, "step")
