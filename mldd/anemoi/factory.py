"""A solver of mldd as the optimizer of a framework that instantiates it: the ``_target_`` of a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from mldd.anemoi.grouping import current_regroup, is_watched
from mldd.loop import is_solver
from mldd.solvers import Optimizer

_ADVICE = "put mldd.anemoi.Subdomains into the callbacks (diagnostics.callbacks of Anemoi)"


def optimizer(
    params: Iterable[Any],
    lr: float | None = None,
    *,
    solver: Any,
    weight_decay: float = 0.0,
    check: bool = True,
    **others: Any,
) -> Optimizer:
    """Return the optimizer that does the steps of a solver.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        As torch has it; inside of `Subdomains` they are put into its groups.
    lr : float, optional
        Rate that the solver starts with, in the place of its own. Anemoi always gives it; for a solver without a rate a
        warning says that it is not used.
    solver : Solver, or callable
        The solver, or what makes one of a decomposition: a method of subdomains with ``_partial_: true``.
    weight_decay : float
        Add ``weight_decay/2 |x|^2`` to the loss.
    check : bool
        Look once whether the closure gives the same twice, see `mldd.solvers.Optimizer`.
    **others
        None is taken: settings of other optimizers that a configuration has inherited are refused by name.

    Raises
    ------
    ValueError
        Settings of another optimizer, no solver, or a method of subdomains without any.

    Examples
    --------
    >>> from torch import nn
    >>> from mldd.solvers import Adam
    >>> optimizer(nn.Linear(2, 1).parameters(), lr=0.1, solver=Adam()).param_groups[0]["lr"]
    0.1
    """
    if others:
        removed = " ".join(f"~training.optimization.optimizer.{name}" for name in others)
        raise ValueError(
            f"the optimizer takes lr, solver, weight_decay and check, got {', '.join(others)}; settings belong to the "
            f"solver, and inherited ones are left out by {removed}"
        )
    given, regroup = list(params), current_regroup()
    if regroup is not None:
        if not all(isinstance(p, nn.Parameter) for p in given):
            raise ValueError(
                "inside of mldd.anemoi.Subdomains an optimizer gets parameters, got groups of them; give the "
                "parameters alone, or leave out the callback"
            )
        given = regroup(given)
    makes = not is_solver(solver)
    if makes and callable(solver) and sum(isinstance(p, dict) for p in given) < 2:
        name = getattr(getattr(solver, "func", solver), "__name__", type(solver).__name__)
        raise ValueError(f"{name} needs groups of parameters as subdomains, got a single one; {_ADVICE}")
    made = Optimizer(given, solver, lr=lr, weight_decay=weight_decay, check=check)
    if not is_watched() and not made.entrywise:
        warnings.warn(
            "nobody has looked whether gradients are clipped or accumulated, which a solver that compares losses does "
            f"not bear; {_ADVICE}, or mldd.anemoi.Recorder",
            stacklevel=2,
        )
    return made
