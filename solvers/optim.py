"""Any solver of mldd as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Real
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from mldd.algebra import (
    Bounds,
    Decomposition,
    Remembered,
    Subdomain,
    did_you_mean,
    local_restrictions,
)
from mldd.loop import CheckpointError, Solver, State, Status, check_solver, is_resumable, is_solver, pack, restore
from mldd.solvers.parts import (
    ClosureObjective,
    Span,
    Surroundings,
    check_closure,
    flattened,
    memory_of,
    rate_of,
    runs,
    step_by_spans,
    with_memory,
    with_rate,
    without_memory,
)

Factory = Callable[[Decomposition], Solver]
# What a group of parameters may hold, from callers, and from torch and its schedulers.
_OPTIONS = ("lr", "weight_decay", "lower", "upper", "name")
_KEPT = (*_OPTIONS, "params", "param_names", "initial_lr")


class Optimizer(torch.optim.Optimizer):
    """A solver of mldd where torch expects an optimizer.

    A step is one step of the solver, which may evaluate the closure several times and at other points than where it
    ends; so the closure has to be the same function of the parameters during a step (from step to step it may be
    another one: mini-batches). A step that cannot be done says why in `status`, and warns once.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        As torch has it. They become views of one flat vector, so move or cast the module before. A group may have an
        ``lr``, a ``weight_decay`` and a ``name`` of its own, and bound its parameters by ``lower`` and ``upper``, for
        solvers that heed bounds.
    solver : Solver, or callable
        ``solver(decomposition)`` makes one for subdomains that are the groups of parameters.
    lr : float, optional
        Rate to start with instead of the solver's own, for solvers that have one.
    weight_decay : float
        Add ``weight_decay/2 |x|^2`` to the loss that the solver sees, as torch.optim.SGD and Adam do (AdamW does not).
    group : torch.distributed.ProcessGroup, "auto" or None
        Ranks that train copies of the module on shares of the data: the mean of their losses is what the solver sees.
        "auto" takes those of the DistributedDataParallel module that holds the parameters, or of the mesh over which
        fully_shard (FSDP2) has cut them. A group is for gradients that the closure averages itself; None is for ranks
        that train alone.
    check : bool
        Look once whether the closure gives the same twice, with a gradient that fits, if a step evaluates it several
        times, and whether function values are compared in less than float64; warn if so. Three more evaluations.

    Attributes
    ----------
    status : Status or None
        Why the last step could not be done or ended the solver's way; the next step starts the solver anew.
    solver_state : State or None
        What the solver remembers.

    Raises
    ------
    ValueError
        Parameters of several dtypes or devices, or in pieces (DTensor) not made by fully_shard, unknown options of a
        group, rates that differ where they cannot, negative decay, bounds that are no box, or a solver that is none.

    Notes
    -----
    Every group has an ``lr``, for schedulers and loggers: the rate of the solver (``lr`` or ``rate``) or of its local
    solver. Groups may differ in it for solvers that move each unknown by its own gradient (Adam, Sgd, TorchAdaGrad,
    AdaGrad without curvature); with a rate of zero these only learn. A solver without a rate refuses a step if ``lr``
    has changed. Hessian products, for solvers that ask for them, are differences of two gradients.

    Solvers that need one gradient a step (Adam, Sgd, AdaGrad) also do ``step()`` after ``loss.backward()``, so with
    gradients accumulated over batches or scaled by torch's GradScaler. The others refuse both: they compare losses.

    With fully_shard, whole vectors of parameters, gradient and the solver's memory are on every rank (7 for Adam, 29
    for L-BFGS of memory 10); a gradient is gathered once. The module, its gradients and activations stay in pieces.

    A parameter without a gradient has a gradient of zero and no decay; its part of the solver's memory goes on, which
    the optimizers of torch leave out. One that is frozen (``requires_grad_(False)``) stays where it is; solvers that
    move all unknowns together start anew when parameters are frozen or trained again.

    Buffers that change with every evaluation, as the running statistics of BatchNorm, are kept as the first evaluation
    of a step leaves them.

    Examples
    --------
    >>> from torch import nn
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

    def __init__(
        self,
        params: ParamsT,
        solver: Solver | Factory,
        *,
        lr: float | None = None,
        weight_decay: float = 0.0,
        group: Any = "auto",
        check: bool = True,
    ) -> None:
        """Make the parameters views of one vector, and the solver, if it is to be made."""
        self._given, self._check, self._group = solver, check, group
        self._state: State | None = None
        self._loaded: dict[str, Any] | None = None
        self._status: Status | None = None
        self._trained: list[bool] = []
        self._building = True
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "lower": -math.inf, "upper": math.inf})
        self._building = False
        self._build()

    # -------------------------------------------------------------------------------- parameters and their groups

    def _build(self) -> None:
        """Flatten the parameters of all groups, in their order."""
        for key, value in ((key, group[key]) for group in self.param_groups for key in _OPTIONS[:4]):
            is_one = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
            if not is_one and (key != "lr" or value is not None):
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"`{key}` of a group must be a number, got {got}; make a group for each number")
        self._sizes = [sum(p.numel() for p in group["params"]) for group in self.param_groups]
        self._unknowns = flattened([p for group in self.param_groups for p in group["params"]])
        self._x, self._good = self._unknowns.vector.clone(), self._unknowns.vector.clone()
        self._bounds = self._box()
        self._solver = self._made()
        self._around = Surroundings(type(self._solver).__name__, self._ranks())
        for p in self._unknowns.parameters:
            self.state[p]["solver"] = type(self._solver).__name__
        self._set_rates()

    def _ranks(self) -> Any:
        """Return the group of ranks, which is known where they hold pieces of the parameters."""
        if self._unknowns.group is None:
            return self._group
        if self._group != "auto":
            raise ValueError("`group` must be left out for parameters in pieces, which know their ranks, got one")
        return self._unknowns.group

    def _set_rates(self) -> None:
        """Give every group its ``lr``, and say where that is of no use."""
        name = type(self._solver).__name__
        self._rate = rate_of(self._solver)
        own = 1.0 if self._rate is None else attrgetter(self._rate)(self._solver)
        for group in self.param_groups:
            if group["lr"] is None:
                group["lr"] = own
            elif self._rate is None and group["lr"] != 1.0:
                self._around.tell("lr", f"{name} has no rate: `lr` {float(group['lr'])} is shown, and not used")
        if self.defaults["lr"] is None:
            self.defaults["lr"] = own
        self._constant = [float(group["lr"]) for group in self.param_groups]
        self._spans()
        self._decays()

    def _limits_of_groups(self) -> list[tuple[float, float]]:
        return [(group["lower"], group["upper"]) for group in self.param_groups]

    def _box(self) -> Bounds:
        self._limits = self._limits_of_groups()
        x = self._unknowns.vector
        lower, upper = (
            torch.cat([x.new_full((n,), g[k]) for n, g in zip(self._sizes, self.param_groups, strict=True)])
            for k in ("lower", "upper")
        )
        bounds = Bounds(lower, upper)
        bounds.check(x)
        if bool(torch.isinf(lower).all() and torch.isinf(upper).all()):
            return Bounds.free(len(lower), dtype=lower.dtype, device=lower.device)
        return bounds

    def _made(self) -> Solver:
        """Return the solver, made for the groups as subdomains if it is to be made."""
        solver, layout = self._given, self._unknowns.layout
        if isinstance(solver, type) and hasattr(solver, "step"):
            check_solver(solver)
        if not is_solver(solver) and callable(solver):
            owners = torch.repeat_interleave(torch.arange(len(self.param_groups)), torch.tensor(self._sizes))
            indices = [(owners == k).nonzero().flatten() for k in range(len(self.param_groups))]
            subdomains = [
                Subdomain(i.to(self._unknowns.vector.device), torch.ones_like(i, dtype=torch.bool)) for i in indices
            ]
            decomposition = Decomposition(layout.size, subdomains, local_restrictions, blocks=layout.slices)
            solver = solver(decomposition)
        if not is_solver(solver):
            raise ValueError(
                f"`solver` must be a solver of mldd or make one of a decomposition, got {type(solver).__name__}"
            )
        return solver  # type: ignore[return-value]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, before the first step.

        Parameters
        ----------
        param_group : dict
            Its ``params``, and any of ``lr``, ``weight_decay``, ``lower``, ``upper`` and ``name``.

        Raises
        ------
        ValueError
            After the first step, or an unknown option.
        """
        for key in param_group:
            if key == "decoupled_weight_decay":
                raise ValueError(
                    "`weight_decay` is a term of the loss here, got decoupled_weight_decay; multiply the parameters by "
                    "1 - lr * weight_decay between backward() and step(), or use torch.optim.AdamW"
                )
            if key not in _KEPT:
                raise ValueError(
                    f"a group of parameters may have {', '.join(_OPTIONS)}, got {key!r}"
                    f"{did_you_mean(str(key), _OPTIONS)}; other settings belong to the solver"
                )
        if not self._building and (self._state is not None or self._loaded is not None):
            raise ValueError(
                "parameters must be added before the first step, got a group after it; make a new optimizer"
            )
        super().add_param_group(param_group)
        if not self._building:
            self._build()

    # -------------------------------------------------------------------------------- a step

    @property
    def status(self) -> Status | None:
        """Why the last step could not be done, or None."""
        return self._status

    @property
    def solver(self) -> Solver:
        """The solver, as it was given or made, with the rate of the first group."""
        return self._solver

    @property
    def solver_state(self) -> State | None:
        """What the solver remembers; None before the first step."""
        return self._state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step of the solver, and return the loss at its start.

        Parameters
        ----------
        closure : callable, optional
            Clears the gradients, computes the loss, calls ``backward`` and returns the loss. It may be left out after
            a ``backward`` for solvers that need one gradient; the step then returns None.

        Raises
        ------
        ValueError
            No closure, or one that returns nothing, where the solver needs one; no gradients; rates that cannot be
            heeded; ranks that differ in their gradients.
        """
        spans = self._spans()
        decays = self._decays()
        if self._limits != self._limits_of_groups():
            self._bounds = self._box()
        with torch.no_grad():
            x = self._bounds.project(self._unknowns.read(), out=self._x)
            f = ClosureObjective(closure, self._unknowns, self._bounds, self._around, decays)
            try:
                value, g = f.evaluate(x)
                loss = f.loss
                if not bool(torch.isfinite(g).all() & (True if value is None else torch.isfinite(value))):
                    x.copy_(x if self._state is None else self._good)
                    self._end(Status.diverged)
                elif self.entrywise or spans[0].moves:
                    self._good.copy_(x)
                    self._advance(f, x, g, spans)
                    self._unknowns.hold(x, self._good)
                    self._examine(f, value, g)
            finally:
                self._unknowns.write(x)
        return loss

    def _spans(self) -> list[Span]:
        """Return the solvers of neighbouring groups with one rate, with the rates that the groups have now."""
        rates, name = [float(group["lr"]) for group in self.param_groups], type(self._solver).__name__
        if len(set(rates)) > 1 and not self.entrywise:
            raise ValueError(
                f"`lr` must be the same for all groups of parameters with {name}, got {rates}; take a solver that "
                "moves each unknown by its own gradient (Adam, Sgd, TorchAdaGrad, AdaGrad without curvature), or make "
                "an optimizer for each group"
            )
        if self._rate is None:
            if rates != self._constant:
                raise ValueError(
                    f"`lr` must stay as it was for {name}, which has no rate, got {rates} after {self._constant}; "
                    "leave the schedule out, or take a solver with a rate (Adam, Sgd, AdaGrad)"
                )
            return [Span(slice(0, sum(self._sizes)), self._solver, True)]
        own, found = attrgetter(self._rate)(self._solver), []
        for where, rate in runs(self._sizes, rates):
            solver = self._solver if rate in (0.0, own) else with_rate(self._solver, self._rate, rate)
            found.append(Span(where, solver, rate != 0))
        self._solver = found[0].solver
        return found

    def _decays(self) -> list[tuple[slice, float]]:
        """Return the weights that groups have now, where there are any."""
        weights = [float(group["weight_decay"]) for group in self.param_groups]
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"`weight_decay` must be >= 0 and finite, got {weights}; 0 is for none")
        return [(where, weight) for where, weight in runs(self._sizes, weights) if weight]

    def _advance(self, f: ClosureObjective, x: Tensor, g: Tensor, spans: list[Span]) -> None:
        objective, y = Remembered(f), x
        objective.keep(x, g)
        try:
            state = self._ready(objective, x)
            if len(spans) == 1 and spans[0].moves:
                y, state = self._solver.step(objective, x, state)
            else:
                step_by_spans(spans, f, x, g, state)
        except BaseException:
            x.copy_(self._good)
            raise
        self._state = state
        state.step += 1
        if y is not x:
            x.copy_(y)
        self._end(state.status)

    @property
    def entrywise(self) -> bool:
        """Whether the solver moves each unknown by its own gradient, of which it needs one a step, and no loss."""
        return getattr(self._solver, "entrywise", False)

    def _ready(self, objective: Remembered, x: Tensor) -> Any:
        """Return the state to go on with: as it is or was loaded, or a fresh one where the solver could not go on."""
        state, before, self._trained = self._state, self._trained, self._unknowns.trained
        is_other = before != self._trained and not self.entrywise  # its memory is of another function
        if state is None and self._loaded is not None:
            state, self._loaded = restore(self._solver.init(objective, x), self._loaded), None
        if state is None or state.status is not None or (before and is_other):
            steps, state = (0 if state is None else state.step), self._solver.init(objective, x)
            state.step = steps
        return state

    def _end(self, status: Status | None) -> None:
        self._status = status
        if status is not None:
            if self._state is not None:
                self._state.status = status
            self._around.tell(status.name, f"{type(self._solver).__name__}: {status.advice}")

    def _examine(self, f: ClosureObjective, value: Tensor | None, g: Tensor) -> None:
        """Look once, after the first step with several evaluations, whether the closure is a function."""
        if self._check and f.evaluations > 1:
            self._check = False
            assert value is not None  # or there would have been one evaluation
            check_closure(f, self._good, value, g)

    # -------------------------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Any]:
        """Return parameter groups and state of the solver as plain data, which ``torch.load`` reads without trust.

        Checkpoints of torch.distributed take it too, and fit any number of ranks.

        Raises
        ------
        CheckpointError
            A solver whose memory lives outside of Python (TAO, SNES).
        """
        if self._state is not None and not is_resumable(self._state):
            name = type(self._solver).__name__
            raise CheckpointError(
                f"the state of {name} lives outside of Python and can be neither saved nor copied; save the module "
                "alone and start a new optimizer from it, or take a solver of mldd (LBFGS)"
            )
        memory = self._loaded if self._state is None else pack(self._state, "state")
        return with_memory(super().state_dict(), type(self._solver).__name__, memory)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the parameters are loaded with their module.

        Parameters
        ----------
        state_dict : dict
            From an optimizer of the same solver and groups.

        Raises
        ------
        ValueError
            From another solver, or of parameters that do not fit (the solver's part of it at the next step).
        """
        memory = memory_of(state_dict, type(self._solver).__name__)
        super().load_state_dict(without_memory(state_dict))
        self._loaded, self._state, self._status = memory, None, None
        self._check = self._check and self._loaded is None
        self._bounds = self._box()
        self._constant = [float(group["lr"]) for group in self.param_groups]

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make a copy that goes on alike: for pickle, and for ``copy.deepcopy`` with the module."""
        kept = [{k: v for k, v in g.items() if k not in ("lr", "initial_lr") and k in _KEPT} for g in self.param_groups]
        options = {"group": self._group, "check": self._check}
        return _rebuilt, (kept, self._given, options, self.defaults, self.state_dict())

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """Return a copy for copied parameters; solver and process group are shared."""
        make, (kept, *others) = self.__reduce__()
        memo[id(self)] = twin = make(copy.deepcopy(kept, memo), *others)
        return twin  # type: ignore[no-any-return]


def _rebuilt(groups: Any, solver: Any, options: dict[str, Any], defaults: dict[str, Any], state: Any) -> Optimizer:
    optimizer = Optimizer(groups, solver, **options)
    optimizer.defaults = dict(defaults)
    optimizer.load_state_dict(state)
    return optimizer
