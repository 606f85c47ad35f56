"""Files that are read in a process apart: a library in C may hang or crash on a damaged one, and take all with it.

The process is started when the first such file is read, reads one file after the other, and ends when nothing is asked
of it for a while. Both sides speak plain JSON and bytes of arrays; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mldd.problems.data import DataError, File, SeriesArrays, Supplement, one_line

_PATIENCE, _SPEED = 60.0, 2e7  # seconds for any file, and bytes per second beyond
_IDLE = 30.0  # seconds after which the process ends
_PIECE = 2**20  # bytes
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from mldd.problems.data.formats.apart import serve; serve()"
_ARRAYS = ("time", "latitude", "longitude", "altitude")


@dataclass
class _Server:
    """The process, if it runs."""

    process: subprocess.Popen[bytes] | None = None
    owner: int = 0  # the process that has started it: a fork of that one has its own

    def ask(self, request: bytes) -> BinaryIO:
        """Send a request and return the pipe of the answer."""
        if self.owner != os.getpid():
            self.process = None
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self._send(request)
        except BrokenPipeError:  # it has just ended, being idle
            self.start()
            self._send(request)
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]  # typeshed: IO[bytes]

    def start(self) -> None:
        """Start the process; what the library prints is of no use."""
        self.stop()
        words = [sys.executable, "-I", "-c", _PROGRAM, *sys.path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, bufsize=0, **pipes)  # type: ignore[call-overload]
        self.owner = os.getpid()

    def _send(self, request: bytes) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(request)

    def stop(self, patience: float = 0.0) -> int:
        """End the process, whatever it does, and return its exit status."""
        if self.process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process = None
        return status


_SERVER, _LOCK = _Server(), threading.Lock()


def read_apart(file: File, options: Mapping[str, Any]) -> SeriesArrays:
    """Return the series in a file, read by xarray in the process apart.

    Parameters
    ----------
    file : File
        Which one, and which variables.
    options : dict
        Arguments of `xarray.open_dataset`, as JSON has them.

    Raises
    ------
    DataError
        The file cannot be read, or the library hangs or crashes on it.
    """
    limit = _PATIENCE + file.path.stat().st_size / _SPEED
    asked = {"path": str(file.path.absolute()), "name": file.name, "variables": file.variables, "options": options}
    asked |= {"select": file.select, "static": file.static}
    try:
        with _LOCK:
            head, arrays = _answered(json.dumps(asked).encode() + b"\n", limit)
    except TimeoutError:
        _SERVER.stop()
        raise DataError(
            f"{file.name}: expected a file that can be read in {limit:.0f} s, got one on which its library hangs; get "
            "it anew from its source"
        ) from None
    except EOFError as error:
        raise DataError(
            f"{file.name}: expected a whole file, got one on which its library crashes (status {error}); get it anew "
            "from its source"
        ) from None
    except BaseException:
        _SERVER.stop()  # half an answer may be in the pipe
        raise
    if "error" in head:
        raise DataError(head["error"])
    return _joined(head, arrays)


def _answered(request: bytes, limit: float, again: bool = True) -> tuple[dict[str, Any], list[Any]]:
    """Return what the process answers within so many seconds; its exit status is that of the EOFError."""
    try:
        pipe, until = _SERVER.ask(request), time.monotonic() + limit
        head: dict[str, Any] = json.loads(_line(pipe, until))
        return head, [_array(pipe, entry, until) for entry in head.get("arrays", ())]
    except EOFError:
        status = _SERVER.stop(patience=5.0)
        if again and status == 0:  # it was about to end, being idle, when it was asked
            return _answered(request, limit, again=False)
        raise EOFError(status) from None


def _joined(head: dict[str, Any], arrays: list[Any]) -> SeriesArrays:
    """Put the answer together."""
    named = dict(zip(head["names"], arrays, strict=True))
    fields = {name: named.pop(f"_{name}") for name in head["variables"]}
    static = {name: named.pop(f"={name}") for name in head["static"]}
    return SeriesArrays(
        **named,
        variables=fields,
        units=head["units"],
        calendar=head["calendar"],
        unused=tuple(head["unused"]),
        notes=tuple(head["notes"]),
        supplement=Supplement(static=static, attributes=head["attributes"]),
    )


def _some(pipe: BinaryIO, most: int, until: float) -> bytes:
    """Return what comes next in a pipe, at least a byte."""
    ready, _, _ = select.select([pipe], [], [], max(until - time.monotonic(), 0.0))
    if not ready:
        raise TimeoutError
    piece = os.read(pipe.fileno(), most)
    if not piece:
        raise EOFError
    return piece


def _line(pipe: BinaryIO, until: float) -> bytes:
    """Return the next line; nothing behind it is there before it is asked for."""
    size = b""
    while not size.endswith(b"\n"):
        size += _some(pipe, 1, until)
    return bytes(_bytes(pipe, int(size), until))


def _bytes(pipe: BinaryIO, size: int, until: float) -> bytearray:
    content, place = bytearray(size), 0
    while place < size:
        piece = _some(pipe, min(size - place, _PIECE), until)
        content[place : place + len(piece)] = piece
        place += len(piece)
    return content


def _array(pipe: BinaryIO, entry: list[Any], until: float) -> Any:
    dtype, shape = np.dtype(entry[0]), tuple(entry[1])
    content = _bytes(pipe, dtype.itemsize * int(np.prod(shape, dtype=np.int64)), until)
    return np.frombuffer(content, dtype=dtype).reshape(shape)


# ---------------------------------------------------------------------------------------------- the process


def serve() -> None:
    """Read the files that are asked for on standard input, until it ends or nothing is asked for a while."""
    out = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # what a library prints is no answer
    while select.select([0], [], [], _IDLE)[0]:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(0, 1)
            if not piece:
                return
            line += piece
        head, arrays = _answer(json.loads(line))
        text = json.dumps(head).encode()
        out.write(b"%d\n" % len(text) + text)
        for array in arrays:
            out.write(array.data.cast("B"))
        out.flush()


def _answer(asked: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return what is said of a file, and its arrays."""
    from mldd.problems.data.formats.netcdf import by_xarray

    file = File(Path(asked["path"]), tuple(asked["variables"]), tuple(asked["select"]), tuple(asked["static"]))
    try:
        found = by_xarray(file, **asked["options"])
    except DataError as error:
        return {"error": str(error).replace(asked["path"], asked["name"])}, []
    except Exception as error:
        return {"error": f"{asked['name']}: expected a file that can be read, got {one_line(error)}; get it anew"}, []
    named = {name: value for name in _ARRAYS if (value := getattr(found, name)) is not None}
    named |= {f"_{name}": value for name, value in found.variables.items()}
    named |= {f"={name}": value for name, value in found.supplement.static.items()}
    arrays = [_plain(value) for value in named.values()]
    head = {
        "names": list(named),
        "arrays": [[value.dtype.str, value.shape] for value in named.values()],
        "variables": list(found.variables),
        "static": list(found.supplement.static),
        "attributes": {name: dict(of) for name, of in found.supplement.attributes.items()},
        "units": dict(found.units),
        "calendar": found.calendar,
        "unused": found.unused,
        "notes": found.notes,
    }
    return head, arrays


def _plain(array: Any) -> Any:
    """Return an array whose memory is one row of bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
