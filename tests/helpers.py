"""Small objectives whose answers are known, files of users, and how programs are started, for every test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from mldd.algebra import Bounds, Price
from mldd.ranks import Communicator
from tests.standing_ranks import standing


@dataclass(frozen=True)
class Quadratic:
    """``x . A x / 2 - b . x`` with a dense symmetric A.

    Parameters
    ----------
    A : Tensor, shape (n, n)
    b : Tensor, shape (n,)
    bounds : Bounds
    price : Price
    """

    A: Tensor
    b: Tensor
    bounds: Bounds
    price: Price = field(default_factory=Price)

    @property
    def size(self) -> int:
        return len(self.b)

    def value(self, x: Tensor) -> Tensor:
        self.price.of_value()
        return 0.5 * x @ (self.A @ x) - self.b @ x

    def gradient(self, x: Tensor) -> Tensor:
        self.price.of_gradient()
        return self.A @ x - self.b

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.price.of_gradient()
        product = self.A @ x
        return 0.5 * x @ product - self.b @ x, product - self.b

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        self.price.of_product()
        return self.A @ v

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        return self.A.diagonal().clone()

    def solution(self) -> Tensor:
        """Return the minimiser without bounds."""
        return torch.linalg.solve(self.A, self.b)


def quadratic(
    n: int = 20, *, condition: float = 100.0, bounded: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Quadratic:
    """Return a random convex quadratic with eigenvalues from 1 to `condition`; bounded: about half are active."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    A = (Q * torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)) @ Q.T
    A = (A + A.T) / 2
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    bounds = Bounds.free(n, dtype=dtype)
    if bounded:
        width = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
        lower = torch.where(torch.arange(n) % 4 == 0, x + 0.1, x - width)
        upper = torch.where(torch.arange(n) % 4 == 2, x - 0.1, x + width)
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        bounds = Bounds(lower.to(dtype), upper.to(dtype))
    return Quadratic(A.to(dtype), (A @ x).to(dtype), bounds)


@dataclass(frozen=True)
class Rosenbrock:
    """``sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2``, minimiser (1, ..., 1)."""

    size: int = 10
    dtype: torch.dtype = torch.float64
    bounds: Bounds = field(init=False)
    price: Price = field(default_factory=Price)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", Bounds.free(self.size, dtype=self.dtype))

    def _value(self, x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def _gradient(self, x: Tensor) -> Tensor:
        bend = x[1:] - x[:-1] ** 2
        g = torch.zeros_like(x)
        g[:-1] = -400 * x[:-1] * bend - 2 * (1 - x[:-1])
        g[1:] += 200 * bend
        return g

    def value(self, x: Tensor) -> Tensor:
        self.price.of_value()
        return self._value(x)

    def gradient(self, x: Tensor) -> Tensor:
        self.price.of_gradient()
        return self._gradient(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.price.of_gradient()
        return self._value(x), self._gradient(x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        self.price.of_product()
        out = torch.zeros_like(v)
        out[:-1] = (1200 * x[:-1] ** 2 - 400 * x[1:] + 2) * v[:-1] - 400 * x[:-1] * v[1:]
        out[1:] += 200 * v[1:] - 400 * x[:-1] * v[:-1]
        return out

    def start(self) -> Tensor:
        """Return the customary start (-1.2, 1, -1.2, 1, ...)."""
        x = torch.ones(self.size, dtype=self.dtype)
        x[::2] = -1.2
        return x


class NoValueError(AssertionError):
    """Raised by an objective whose value must never be asked for."""


@dataclass(frozen=True)
class WithoutValue:
    """`f` with a value that raises: a method without function values must never notice."""

    f: Quadratic | Rosenbrock

    @property
    def size(self) -> int:
        return self.f.size

    @property
    def bounds(self) -> Bounds:
        return self.f.bounds

    def gradient(self, x: Tensor) -> Tensor:
        return self.f.gradient(x)

    def value(self, x: Tensor) -> Tensor:
        raise NoValueError("the value was asked for")


@dataclass
class Wrapped:
    """`f` with its size, bounds and values alone."""

    f: Any

    @property
    def size(self) -> int:
        return self.f.size

    @property
    def bounds(self) -> Bounds:
        return self.f.bounds

    def value(self, x: Tensor) -> Tensor:
        return self.f.value(x)


@dataclass
class WithoutProducts(Wrapped):
    """`f` with value and gradient alone, which counts its gradients."""

    gradients: int = 0

    def gradient(self, x: Tensor) -> Tensor:
        self.gradients += 1
        return self.f.gradient(x)


@dataclass
class Failing(Wrapped):
    """`f`, calling `fail` in place of evaluation number `at` (a gradient with or without value), counted from 0."""

    at: int
    fail: Callable[[], Tensor]
    calls: int = 0

    def gradient(self, x: Tensor) -> Tensor:
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls > self.at:
            bad = self.fail()
            return bad, x * bad
        return self.f.value_and_gradient(x)


# files


def user_arrays(n: int = 60, seed: int = 0) -> dict[str, Any]:
    """Return a graph of three classes in the layout of gnn-benchmark."""
    random = np.random.default_rng(seed)
    adjacency = sp.random(n, n, 0.1, format="csr", random_state=seed, data_rvs=np.ones)
    features = sp.csr_matrix(random.random((n, 5)))
    return {
        **{f"adj_{key}": getattr(adjacency, key) for key in ("data", "indices", "indptr", "shape")},
        **{f"attr_{key}": getattr(features, key) for key in ("data", "indices", "indptr", "shape")},
        "labels": np.arange(n) % 3,
    }


def user_tensors(n: int = 60) -> dict[str, Tensor]:
    """Return a path of three classes as torch_geometric names its tensors."""
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.rand(n, 5, generator=generator), "edge_index": edges, "y": torch.arange(n) % 3}


class Evil:
    """Touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def result(folder: Path) -> Any:
    """Return what a run has written into ``result.json``."""
    return json.loads((folder / "result.json").read_text())


# programs

MLDD = "import sys; from mldd.command.cli import main; sys.exit(main())"
# Put before a program, it hides the packages in $HIDDEN as if they were not installed.
WITHOUT = """
import os, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in os.environ["HIDDEN"].split()
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

# Command lines one after the other; says status and standard error of each.
COMMANDS = """
import contextlib, io, json, sys
from mldd.command.cli import main
from mldd.ranks import world

for line in sys.argv[1:]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main(line.split())
    print(json.dumps([code, err.getvalue()]))
    world().agree(False)
"""

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(MPIEXEC is None or find_spec("mpi4py") is None, reason="needs mpiexec and mpi4py")


def command(ranks: int, program: str, *arguments: str, safe: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Return how to run a program on some ranks; `safe`: an exception on one ends all, as the command line does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [str(MPIEXEC), "-n", str(ranks), sys.executable, *(["-m", "mpi4py"] if safe else [])]
    words += ["-c", textwrap.dedent(program), *map(str, arguments)]
    return words, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}


def torchrun(ranks: int, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on some ranks that torchrun starts; a hang is a failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*begin, "--no-python", *words], timeout=100, cwd=cwd, env=environment, capture_output=True, text=True
    )


class OneOfFour(Communicator):
    """The first of four ranks, which sends nothing: what it holds is that of one rank among several."""

    ranks = 4


def launch(
    ranks: int, program: str, *arguments: str, cwd: Path | None = None, safe: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program on some ranks; a hang is a failure."""
    words, options = command(ranks, program, *arguments, safe=safe)
    return subprocess.run(words, timeout=100, cwd=cwd, **options)


def together(ranks: int, program: str, *arguments: Any) -> str:
    """Run a program on ranks that stay for the next one, and return what they have printed; one that fails fails."""
    return standing(str(MPIEXEC), ranks).run(program, *map(str, arguments))


def commands(ranks: int, *lines: str) -> list[tuple[set[int], list[str]]]:
    """Run command lines on ranks; give by line the statuses that ranks end with, and what they say of errors."""
    rows = [json.loads(row) for row in together(ranks, COMMANDS, *lines).splitlines()]
    by_line = [rows[k :: len(lines)] for k in range(len(lines))]
    return [({code for code, _ in ends}, "".join(err for _, err in ends).splitlines()) for ends in by_line]


def agree(ranks: int, program: str) -> None:
    """Run a program that compares ranks and says at its end that they are "all the same"."""
    assert "all the same" in together(ranks, program)


def pinn(name: str, model: Any = "network", **options: Any) -> Any:
    """Return a physics-informed problem; options of its nested records are given flat."""
    from mldd.problems.pinns import PhysicsInformed
    from mldd.problems.pinns.pinn_options import Architecture, Poisson, Windows

    for key, kind in (("network", Architecture), ("windows", Windows), ("poisson", Poisson)):
        own = [f.name for f in fields(kind)]
        options[key] = kind(**{k: options.pop(k) for k in own if k in options})
    return PhysicsInformed(name, model, **options)
