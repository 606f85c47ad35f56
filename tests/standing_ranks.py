"""Ranks that stay: programs are run by ranks that have loaded torch and mldd before, which takes seconds per rank.

Started by ``mpiexec -n RANKS python -m mpi4py tests/standing_ranks.py FOLDER``. Each line of the standard input is a
number; all ranks run the program in ``FOLDER/NUMBER.py`` and say how it went in ``FOLDER/NUMBER.RANK.json``. Ranks that
have nothing to do wait in a file, not in MPI, where they would keep processors busy. The first program that fails ends
all ranks: others may wait for the rank that has failed.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PATIENCE = 100.0  # seconds; a program that takes longer hangs


class StandingRanks:
    """Some ranks that run one program after the other.

    Parameters
    ----------
    mpiexec : str
        What starts them.
    ranks : int
        How many.
    """

    def __init__(self, mpiexec: str, ranks: int) -> None:
        self.ranks, self.folder, self.number = ranks, Path(tempfile.mkdtemp(prefix="mldd-ranks-")), 0
        for rank in range(1, ranks):
            os.mkfifo(self.folder / f"{rank}.pipe")
        words = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", __file__, str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.log = (self.folder / "log").open("w+")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, text=True, env=environment
        )

    def run(self, program: str, *arguments: str) -> str:
        """Return what all ranks have printed, rank by rank; one that fails is a failure.

        Parameters
        ----------
        program : str
            Python source.
        *arguments : str
            Its ``sys.argv``.
        """
        self.number += 1
        source = f"import sys; sys.argv[1:] = {list(arguments)}\n{textwrap.dedent(program)}"
        (self.folder / f"{self.number}.py").write_text(source, encoding="utf-8")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.number}\n")
        self.process.stdin.flush()
        said, end = [self.folder / f"{self.number}.{rank}.json" for rank in range(self.ranks)], time.time() + _PATIENCE
        while not all(path.exists() for path in said) and self.process.poll() is None and time.time() < end:
            time.sleep(0.005)
        results = [json.loads(path.read_text(encoding="utf-8")) for path in said if path.exists()]
        text = "".join(result["printed"] for result in results)
        if len(results) < self.ranks or not all(result["good"] for result in results):
            self.process.terminate()
            self.process.wait()
            self.log.seek(0)
            log = self.log.read()
            self.end()
            raise AssertionError(f"{len(results)} of {self.ranks} ranks have come to an end:\n{text}\n{log}")
        return text

    @property
    def stand(self) -> bool:
        """Whether they wait for a program."""
        return self.process.poll() is None

    def end(self) -> None:
        """End all ranks."""
        self.process.terminate()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


_standing: dict[int, StandingRanks] = {}


def standing(mpiexec: str, ranks: int) -> StandingRanks:
    """Return so many ranks, new ones where there are none, or where these have failed.

    Parameters
    ----------
    mpiexec : str
        What starts them.
    ranks : int
        How many.
    """
    if ranks not in _standing or not _standing[ranks].stand:
        _standing[ranks] = StandingRanks(mpiexec, ranks)
        atexit.register(_standing[ranks].end)
    return _standing[ranks]


def _numbers(folder: Path, rank: int, ranks: int) -> Iterator[str]:
    """Yield the numbers of programs: rank 0 reads them and passes them on; the input ends with the tests."""
    if rank > 0:
        while number := (folder / f"{rank}.pipe").read_text().strip():
            yield number
        return
    for line in sys.stdin:
        for other in range(1, ranks):
            (folder / f"{other}.pipe").write_text(line)
        yield line.strip()
    for other in range(1, ranks):
        (folder / f"{other}.pipe").write_text("\n")


def _serve(folder: Path) -> None:
    import torch
    from mpi4py import MPI

    sys.path.insert(0, str(ROOT))
    comm = MPI.COMM_WORLD
    for number in _numbers(folder, comm.rank, comm.size):
        torch.manual_seed(0)
        printed, good = io.StringIO(), True
        source = (folder / f"{number}.py").read_text(encoding="utf-8")
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                exec(compile(source, f"program {number}", "exec"), {"__name__": "__main__"})
            except BaseException:  # SystemExit, too: a program comes to its end
                good = False
                traceback.print_exc()
        partial = folder / f"{number}.{comm.rank}.partial"
        partial.write_text(json.dumps({"good": good, "printed": printed.getvalue()}), encoding="utf-8")
        partial.rename(folder / f"{number}.{comm.rank}.json")
        if not good:
            comm.Abort(1)
        torch.set_default_dtype(torch.float32)
        gc.collect()
    os._exit(0)  # the tests have ended: nothing is to be waited for


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
