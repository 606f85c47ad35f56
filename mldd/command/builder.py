"""Problems and trees of solvers, built from what was read on the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mldd.command.keys import default, fields_of, keys_of
from mldd.command.names import Spec, python_specs
from mldd.command.preparation import Preparation
from mldd.loop import Cost, Problem, Solver, has
from mldd.ranks import SERIAL, Communicator, device

# Option -> the field of a solver that makes use of it.
WANTED_BY = {
    "parts": "decomposition",
    "overlap": "decomposition",
    "levels": "hierarchy",
    "combine": "combine",
    "local_steps": "local_steps",
}

_current: ContextVar[Builder] = ContextVar("builder")


def build_problem(spec: Spec, options: argparse.Namespace, seed: int, comm: Communicator) -> Problem:
    """Return the problem; what it has a field for, it gets: dtype, device, data, seed, comm.

    Parameters
    ----------
    spec : Spec
        Of the problem.
    options : argparse.Namespace
        ``dtype``, ``data`` and ``device`` of the command line.
    seed : int
        Of what is random in it.
    comm : Communicator
        The ranks.

    Raises
    ------
    ValueError
        An option that the problem has no use for, or a value it refuses.
    """
    given: dict[str, Any] = {"seed": seed, "comm": comm, "device": str(device(options.device, comm))}
    if options.dtype is not None:
        given["dtype"] = options.dtype
    if options.data is not None:
        given["data"] = str(options.data)
    for name in ("dtype", "data"):
        if name in given and not spec.has(name):
            raise ValueError(f"--{name} is of no use to problem {spec.text}; leave it out")
    if options.device == "cuda" and not spec.has("device"):
        raise ValueError(f"problem {spec.text} runs on the CPU only, got --device cuda; leave it out")
    problem: Problem = spec.make(**given)
    return problem


def check_options(options: argparse.Namespace, solvers: Sequence[Spec]) -> None:
    """Refuse an option that none of the solvers, nor one nested in them, has a use for.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.
    solvers : sequence of Spec
        Those of the run.

    Raises
    ------
    ValueError
        It names the option.
    """
    all_specs = [nested for spec in (*solvers, *python_specs(options.petsc)) for nested in spec.tree]
    for option, wanted in WANTED_BY.items():
        if getattr(options, option) is not None and not any(spec.has(wanted) for spec in all_specs):
            names = " ".join(spec.text for spec in solvers)
            which = {"decomposition": "subdomains", "hierarchy": "levels"}.get(wanted, f"the key {wanted}")
            raise ValueError(
                f"--{option.replace('_', '-')} is of no use to solver {names}; leave it out or use one with {which}"
            )


@dataclass(frozen=True)
class Builder:
    """Makes the solvers of a run, nested ones too.

    A field `decomposition` gets subdomains, a field `hierarchy` gets levels: three by default where the solver cannot
    do without, one (none) where it can; for subdomains, those that fit their number where the problem knows. Problems
    say which hyper-parameters suit a solver (a learning rate, say) by ``settings(name)``; what the user wrote comes
    first. A field `prefix`, of options in PETSc's database, gets the names of the fields that lead to the solver, as
    in ``npc_local_``.

    Parameters
    ----------
    options : argparse.Namespace
        ``parts overlap levels combine local_steps petsc`` of the command line.
    preparation : Preparation
        Of the problem: it makes subdomains and levels.
    """

    options: argparse.Namespace
    preparation: Preparation
    _used: list[Any] = field(default_factory=list, repr=False)

    @property
    def problem(self) -> Problem:
        """The problem that solvers are made for."""
        return self.preparation.problem

    @property
    def comm(self) -> Communicator:
        """The ranks."""
        return self.preparation.comm

    def setup(self) -> Cost:
        """Return what making the subdomains and levels of the solvers has cost; all ranks ask together."""
        return self.preparation.cost(self._used)

    def solver(self, spec: Spec, prefix: str = "", *, whole: bool = True) -> Solver:
        """Make the solver of `spec` with all that is nested in it.

        Parameters
        ----------
        spec : Spec
            Of the solver, with those nested in it.
        prefix : str
            Of its options in PETSc's database.
        whole : bool
            It sees the whole problem, not a subdomain or a coarse level.

        Raises
        ------
        ValueError
            A solver with subdomains or levels of its own inside of a subdomain or a level; a value it refuses.
        """
        given: dict[str, Any] = {
            "comm": self.comm if whole else SERIAL,
            "seed": self.preparation.seed,
            "prefix": prefix,
        }
        given |= self._advice(spec)
        if whole:
            given |= self._spaces(spec)
        elif spec.has("decomposition") or _needs(spec, "hierarchy"):
            raise ValueError(
                f"{spec.text} decomposes the whole problem, got it as the solver of a part of it; use one without "
                "subdomains and levels (lbfgs, adagrad, tao)"
            )
        for name in ("combine", "local_steps"):
            if getattr(self.options, name) is not None:
                given[name] = getattr(self.options, name)
        key = "rates.schedule"
        if not prefix and spec.has("rates") and spec.keys.get(key, given.get(key, "constant")) != "constant":
            given["rates.length"] = self.options.steps
        for name, nested in spec.keys.items():
            if isinstance(nested, Spec):
                given = {key: value for key, value in given.items() if not key.startswith(f"{name}.")}
                path = name.removesuffix(".solver").replace(".", "_")
                # what is nested in a solver that decomposes sees a subdomain or a coarse level
                given[name] = self.solver(nested, f"{prefix}{path}_", whole=whole and not spec.has("decomposition"))
        solver: Solver = spec.make(**given)
        return solver

    def _advice(self, spec: Spec) -> dict[str, Any]:
        """Return the settings of the problem for this solver, refusing one that the solver has no field for."""
        advice = self.problem.settings(spec.name)
        known = {"parts", "overlap"}
        for f in fields(spec.kind):
            known |= {f.name} | {f"{f.name}.{inner.name}" for inner in fields_of(type(default(f)))}
        for key in advice:
            if key not in known:
                raise ValueError(
                    f"`settings` of problem {type(self.problem).__name__} must name fields of {spec.name}, got {key!r};"
                    f" it has {' '.join(keys_of(spec.kind))}"
                )
        return advice

    def shape(self, spec: Spec) -> dict[str, int]:
        """Return which ``parts``, ``overlap`` and ``levels`` the solver uses, or the solvers that PETSc options name.

        Parameters
        ----------
        spec : Spec
            Of the solver.
        """
        shape = {"parts": 1, "overlap": 0, "levels": 1}
        for one in (*spec.tree, *(nested for named in python_specs(self.options.petsc) for nested in named.tree)):
            if one.has("decomposition"):
                shape["parts"], shape["overlap"] = self._cut(one)
            if one.has("hierarchy"):
                shape["levels"] = max(shape["levels"], self._levels(one))
        return shape

    def _cut(self, spec: Spec) -> tuple[int, int]:
        """Return the number of subdomains and their overlap."""
        cut = {"parts": max(4, self.comm.ranks), "overlap": 1} | self.problem.settings(spec.name)
        parts, overlap = self.options.parts, self.options.overlap
        return cut["parts"] if parts is None else parts, cut["overlap"] if overlap is None else overlap

    def _levels(self, spec: Spec) -> int:
        return self.options.levels or (3 if _needs(spec, "hierarchy") else 1)

    def _spaces(self, spec: Spec) -> dict[str, Any]:
        """Make the subdomains and levels that the solver has fields for."""
        made: dict[str, Any] = {}
        if spec.has("decomposition"):
            self._ask(spec, "decomposition", "decomposition(parts, overlap, comm)")
            made["decomposition"] = self.preparation.decomposition(*self._cut(spec))
        levels = self._levels(spec)
        self._check_coarse(spec, levels)
        if spec.has("hierarchy") and (levels > 1 or _needs(spec, "hierarchy")):
            self._ask(spec, "hierarchy", "hierarchy(levels)")
            parts = self._cut(spec)[0] if spec.has("decomposition") else None
            made["hierarchy"] = self.preparation.hierarchy(levels, parts)
        self._used.extend(made.values())
        return made

    def _check_coarse(self, spec: Spec, levels: int) -> None:
        """Refuse what the user says of coarse levels where there is none."""
        said = [key for key in spec.keys if re.match(r"coarse(?=[._]|$)", key)]
        if said and spec.has("hierarchy") and levels == 1:
            raise ValueError(
                f"{spec.name}:{said[0]} is of no use on one level, got {spec.text}; add --levels 2, or leave it out"
            )

    def _ask(self, spec: Spec, name: str, method: str) -> None:
        """Refuse a solver that needs what the problem does not have."""
        if not has(self.problem, name):
            raise ValueError(
                f"solver {spec.text} needs `{method}`, which problem {type(self.problem).__name__} does not have; "
                "add it to the class, or take another solver"
            )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Yield nothing; inside the block, solvers that PETSc's options name are built by this builder."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def current() -> Builder | None:
    """Return the builder of the run that is going on, None outside of the command line."""
    return _current.get(None)


def _needs(spec: Spec, name: str) -> bool:
    """Say whether the solver has the field `name` and no default for it."""
    return any(f.name == name and f.default is MISSING and f.default_factory is MISSING for f in fields(spec.kind))
