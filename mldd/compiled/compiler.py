"""A C source as a shared library for one processor and precision, where there is a C compiler.

It is compiled once with the compiler named by ``CC`` (by default ``cc``) and kept in the user's cache. Without a
compiler, with an empty ``CC``, or where the cache cannot be written, there is none, and operations of torch are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_REAL = {torch.float32: "float", torch.float64: "double"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}  # relative; how far results may be from those of torch


def library_of(
    source: Path, dtype: torch.dtype, arguments: Mapping[str, Sequence[Any]], is_right: Callable[[Any], bool]
) -> Any:
    """Return the functions of a source in one precision; None where they cannot be made or are wrong.

    Parameters
    ----------
    source : Path
        C with the macro REAL for the type of numbers.
    dtype : dtype
        float32 or float64; there are no functions in other ones.
    arguments : mapping of str to sequence of ctypes types
        The functions that are called, and the types of their arguments; they return nothing.
    is_right : callable
        ``is_right(functions)`` says whether the results on a small case are those of torch.
    """
    found = _compiled(source, _REAL[dtype]) if dtype in _REAL else None
    if found is None:
        return None
    for name, types in arguments.items():
        function = getattr(found, name)
        function.argtypes, function.restype = list(types), None
    if is_right(found):
        return found
    warnings.warn(
        f"{found._name} gives wrong numbers, operations of torch are used; delete it, or set CC", stacklevel=3
    )
    return None


def _compiled(source: Path, real: str) -> Any:
    """Return the shared library from the cache, or compiled now; None without a compiler and a place for the result."""
    compiler = shutil.which(os.environ.get("CC", "cc") or " ")
    if compiler is None:
        return None
    text = "\0".join([source.read_text(), compiler, real, *_FLAGS, _processor()])
    name = f"{source.stem}-{real}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    try:
        file = _cache() / name
        if not file.exists():
            if not _is_writable(file.parent):
                return None
            _compile(compiler, source, real, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{source.name} is not compiled, operations of torch are used: {reason}", stacklevel=4)
        return None


def _compile(compiler: str, source: Path, real: str, file: Path) -> None:
    """Compile for this processor; other ranks may do so at the same time."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        command = [compiler, *_FLAGS, f"-DREAL={real}", "-o", str(made), str(source), "-lm"]
        done = subprocess.run([*command, "-march=native"], capture_output=True, timeout=120, check=False, text=True)
        if done.returncode != 0:
            done = subprocess.run(command, capture_output=True, timeout=120, check=False, text=True)
        if done.returncode != 0:
            raise OSError(done.stderr.strip()[-300:])
        os.replace(made, file)


def _is_writable(folder: Path) -> bool:
    """Return whether files can be put into a folder, which is made if need be: homes may be read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("mldd")) / "compiled"


def _processor() -> str:
    """Return what tells processors apart that need code of their own."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.platform(), platform.processor(), *sorted(kinds)])
