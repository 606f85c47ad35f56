"""What is installed and what the machine offers: ``mldd info``."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

import mldd
from mldd.algebra import way_to_install
from mldd.ranks import library

# What can partition a graph, and the module that offers it.
_PARTITIONERS = {"METIS": "pymetis", "Mt-KaHyPar": "mtkahypar", "KaHIP": "kahip"}
_PACKAGES = ("torch", "numpy", "scipy", "petsc", "petsc4py", "mpi4py", "mpich", "torch-geometric", "matplotlib")


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on, as far as it is installed."""
    found = {"mldd": mldd.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def lines() -> list[str]:
    """Return the lines of ``mldd info``; what is missing is said with the reason."""
    rows = {**dict.fromkeys(("mldd", "python", *_PACKAGES), "missing"), **versions()}
    rows["PETSc"] = _petsc()
    rows["MPI"] = library()
    rows["devices"] = _devices()
    rows["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    there = [name for name, module in _PARTITIONERS.items() if find_spec(module) is not None]
    rows["partitioners"] = " ".join(there) or f"none ({way_to_install('pymetis')})"
    width = max(map(len, rows)) + 2
    return [f"{name:<{width}}{text}" for name, text in rows.items()]


def _petsc() -> str:
    from mldd.ranks import load_petsc

    try:
        module = load_petsc()
    except ImportError as error:
        return " ".join(str(error).split())
    release = ".".join(map(str, module.Sys.getVersion()))
    return f"{release}, scalars {module.ScalarType.__name__}, integers {module.IntType.__name__}"


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({platform.processor() or platform.machine()})"
    names = (torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return "cpu, " + ", ".join(f"cuda:{k} ({name})" for k, name in enumerate(names))
