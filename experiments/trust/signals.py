"""Do runs survive what clusters do to them? Kills, signals, time limits with requeues, ten interruptions, full disks.

    python experiments/trust/signals.py [--kills 200] [--rounds 1] [--only ranks slurm ...] [--out FOLDER]

- kills: a run that writes a checkpoint at every step is ended by SIGKILL at random moments, from before its first file
  to behind its last one, and started again with ``--resume auto`` until it has ended; after every kill its files are
  whole, and the solution is that of a run that nobody has ended, to the last bit.
- ranks: the same of two ranks of mpiexec, of which one is killed: the other ends with it.
- signals: TERM, USR1 and INT at every rank and at the launcher (two ranks of mpiexec, of torchrun).
- slurm: a script in the place of the batch system tells the end of the job, or sends USR1, or TERM, then KILL, and
  starts the job again while its exit status is 143.
- ten: a run that is ended ten times by TERM at random moments and goes on by ``--resume auto``, on one rank, on two,
  and on one and two in turn.
- disk: no file may be larger than some bytes; and a disk that is full, where this may be mounted.
The tables ``signals.json`` and ``signals.txt`` in the folder keep the rows of parts that are not run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
MLDD = "import sys; from mldd.command.cli import main; sys.exit(main())"
# A method with memory whose steps take time, so that there is something to interrupt.
METHOD = """
import time
from dataclasses import dataclass
import torch
from mldd.loop import State
@dataclass
class Memory(State):
    momentum: torch.Tensor = None
@dataclass(frozen=True)
class Slow:
    rate: float = 0.01
    pause: float = 0.02
    def init(self, objective, x):
        return Memory(momentum=torch.zeros_like(x))
    def step(self, objective, x, state):
        time.sleep(self.pause)
        state.momentum.mul_(0.9).add_(objective.gradient(x))
        return objective.bounds.project(x - self.rate * state.momentum), state
"""
KEPT = "--checkpoint c.ckpt --resume auto --out out"
WAIT = 60.0  # seconds after which something hangs


def line(pause: float, steps: int, *more: str) -> list[str]:
    """Return the words of a training behind ``mldd``."""
    method = f"slow.py:Slow:pause={pause}"
    return ["train", "obstacle:n=15", "--solver", method, "--steps", str(steps), "--quiet", *" ".join(more).split()]


def started(words: list[str], ranks: int, launcher: str = "mpiexec", **environment: str) -> subprocess.Popen[bytes]:
    """Start ``mldd`` on some ranks."""
    python = [sys.executable, "-c", MLDD]
    if ranks > 1 and launcher == "mpiexec":
        python = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *python]
    if ranks > 1 and launcher == "torchrun":
        begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        python = [*begin, "--no-python", *python]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*python, *words], env=given, start_new_session=True, **quiet)


class Child:
    """``mldd`` in a child of this process, in which everything is loaded, so that it begins at once."""

    def __init__(self, words: list[str], **environment: str) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.environ.update(environment)
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                from mldd.command.cli import main

                code = main(words)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        """Return the exit status, as Popen does, None while it runs."""
        if self.code is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(ended[1])
        return self.code

    def wait(self, timeout: float) -> int:
        """Return the exit status, once there is one, as Popen does."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("mldd", timeout)
            time.sleep(0.002)
        return int(self.code or 0)


Job = subprocess.Popen[bytes] | Child


def waited(process: Job) -> int:
    """Return the exit status as a shell says it, and end what hangs."""
    try:
        code = process.wait(WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1
    return code if code >= 0 else 128 - code


def load_all() -> None:
    """Load what a run needs, once, so that children begin at once."""
    import torch

    import mldd.figures.curves
    from mldd.command.cli import main

    torch.set_num_threads(1)
    mldd.figures.curves.convergence = lambda history, path, title: path.touch()  # it takes longer than a run
    main(line(0.0, 2, "--out warm --checkpoint warm.ckpt"))


def solution(folder: str) -> np.ndarray[Any, Any]:
    """Return the unknowns at the end of a run."""
    with np.load(Path(folder) / "solution.npz") as content:
        found: np.ndarray[Any, Any] = content["x"]
        return found


def faults_of_files() -> list[str]:
    """Say what is not whole of the files that a run has left: none of them may be damaged."""
    from mldd.checkpoints import load
    from mldd.loop import read_csv

    found = []
    looks: dict[str, Callable[[Path], Any]] = {
        "c.ckpt": load,
        "out/history.csv": lambda path: path.read_bytes().count(b"\n") and read_csv(path),
        "out/result.json": lambda path: json.loads(path.read_text()),
        "out/solution.npz": lambda path: solution("out"),
    }
    for name, look in looks.items():
        try:
            if Path(name).exists():
                look(Path(name))
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def clean() -> None:
    """Remove what runs have left."""
    shutil.rmtree("out", ignore_errors=True)
    for path in Path(".").glob("*.ckpt*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)


def kills(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of SIGKILL at random moments."""
    draw, words = random.Random(options.seed), line(0.005, 60, KEPT, "--checkpoint-every 1steps --evaluate-every 1")
    begin = time.monotonic()
    assert waited(Child(line(0.005, 60, "--out whole --overwrite --checkpoint w.ckpt --checkpoint-every 1steps"))) == 0
    lasts = time.monotonic() - begin
    done, runs, faults, equal, codes = 0, 0, [], 0, Counter[int]()
    while done < options.kills:
        clean()
        code = -1
        while code != 0:
            child = Child(words)
            if done < options.kills:
                time.sleep(draw.uniform(0.0, 1.1 * lasts))
                os.kill(child.pid, signal.SIGKILL)
            code = waited(child)
            codes[code] += 1
            done += code == 137
            faults += faults_of_files()
            if code not in (0, 137):
                faults.append(f"exit status {code}")
                break
        runs += 1
        equal += code == 0 and bool(np.array_equal(solution("out"), solution("whole")))
    yield {
        "part": "kills",
        "what": f"SIGKILL at random moments, one rank, {lasts:.2g} s a run",
        "times": done,
        "faults": faults,
        "runs that ended": runs,
        "bit-identical": equal,
        "exit status": {str(code): times for code, times in sorted(codes.items())},
    }


def kills_of_ranks(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of SIGKILL of one of two ranks at random moments, from before its first file to its end."""
    draw, kept = random.Random(options.seed), "--checkpoint-every 1steps --evaluate-every 1"
    begin = time.monotonic()
    assert waited(started(line(0.005, 60, "--out whole --overwrite --checkpoint w.ckpt", kept), 2)) == 0
    lasts = time.monotonic() - begin
    done, runs, faults, equal, slowest = 0, 0, [], 0, 0.0
    while done < options.kills:
        clean()
        code = -1
        while code != 0:
            process = started(line(0.005, 60, KEPT, kept), 2)
            time.sleep(draw.uniform(0.3 * lasts, lasts))
            of_rank = rank_of(draw.randrange(2)) if done < options.kills else []
            for one in of_rank:
                os.kill(one, signal.SIGKILL)
            begin = time.monotonic()
            code = waited(process)
            if of_rank and code != 0:
                done, slowest = done + 1, max(slowest, time.monotonic() - begin)
            elif code != 0:
                faults.append(f"exit status {code} without a kill")
                break
            left = rank_of(0) + rank_of(1)
            faults += faults_of_files() + ([f"{len(left)} ranks left"] if left else [])
        runs += 1
        equal += code == 0 and bool(np.array_equal(solution("out"), solution("whole")))
    yield {
        "part": "ranks",
        "what": f"SIGKILL of one of two ranks at random moments, {lasts:.2g} s a run",
        "times": done,
        "faults": faults,
        "runs that ended": runs,
        "bit-identical": equal,
        "seconds until all ranks had ended, at most": round(slowest, 2),
    }


def rank_of(number: int) -> list[int]:
    """Return the processes of a rank among the children of this one."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            words, parent = (place / "cmdline").read_bytes(), os.readlink(place / "cwd")
        except OSError:
            continue
        is_rank = {f"PMI_RANK={number}".encode(), f"RANK={number}".encode()} & set(variables)
        if is_rank and b"slow.py:Slow" in words and parent == os.getcwd():
            found.append(int(place.name))
    return found


def rows_are_there(rows: int = 5) -> None:
    """Wait until a run has written some rows of its history."""
    end, path = time.monotonic() + WAIT, Path("out/history.csv")
    while not (path.exists() and path.read_bytes().count(b"\n") > rows):
        if time.monotonic() > end:
            raise TimeoutError("a run does not begin")
        time.sleep(0.02)


def signals(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of signals at ranks and launchers; torchrun itself does not hand USR1 on, and ends with 1."""
    from mldd.checkpoints import load
    from mldd.loop import read_csv

    cases = [("mpiexec", target, name) for target in ("0", "1", "launcher") for name in ("TERM", "USR1", "INT")]
    cases += [("torchrun", target, "TERM") for target in ("0", "1", "launcher")] + [("torchrun", "launcher", "INT")]
    for launcher, target, name in cases * options.rounds:
        clean()
        process = started(line(0.02, 100000, KEPT), 2, launcher)
        rows_are_there()
        number = getattr(signal, f"SIG{name}")
        for one in [process.pid] if target == "launcher" else rank_of(int(target)):
            os.kill(one, number)
        begin = time.monotonic()
        code = waited(process)
        seconds, faults = time.monotonic() - begin, faults_of_files()
        expected = 1 if launcher == "torchrun" else 130 if name == "INT" else 143
        faults += [] if code == expected else [f"exit status {code}"]
        status = ""
        if Path("out/result.json").exists() and Path("c.ckpt").exists():
            content = json.loads(Path("out/result.json").read_text())
            status, step = content["status"], load("c.ckpt").history.records[-1].step
            same = content["steps"] == step == read_csv(Path("out/history.csv")).records[-1].step
            faults += [] if same else [f"result of step {content['steps']}, checkpoint of step {step}"]
        else:
            faults.append("no result or no checkpoint")
        left = rank_of(0) + rank_of(1)
        faults += [f"{len(left)} ranks left"] if left else []
        where = "launcher" if target == "launcher" else f"rank {target}"
        yield {
            "part": "signals",
            "what": f"{name} at {where} of two by {launcher}",
            "times": 1,
            "faults": faults,
            "exit status": code,
            "status": status,
            "seconds until the end": round(seconds, 2),
        }


def job(words: list[str], ranks: int, **environment: str) -> Job:
    """Start ``mldd``: on one rank in a child of this process."""
    return Child(words, **environment) if ranks == 1 else started(words, ranks, **environment)


def slurm(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of a batch system that ends jobs after their time and starts them again."""
    cases = [(1, "its end is told"), (1, "USR1 comes before"), (1, "TERM comes before"), (2, "USR1 comes before")]
    for ranks, how in cases:
        begin = time.monotonic()
        assert waited(job(line(0.0, 300, "--out whole --overwrite"), ranks)) == 0
        lasts = 6.0 + 3.0 * (time.monotonic() - begin)  # a job; the run needs about two and a half of them
        clean()
        codes, killed = [], 0
        while (not codes or codes[-1] == 143) and len(codes) < 40:
            code, late = in_time(line(2.0 * lasts / 300, 300, KEPT), ranks, how, lasts)
            codes.append(code)
            killed += late
        faults = faults_of_files() + ([f"killed {killed} times"] if killed else [])
        faults += [] if codes[-1] == 0 else [f"exit status {codes[-1]}"]
        faults += [] if difference() == 0.0 else [f"difference {difference()}"]
        yield {
            "part": "slurm",
            "what": f"jobs of {lasts:.2g} s, {how}, ranks {ranks}",
            "times": len(codes) - 1,
            "faults": faults,
            "exit status": codes,
        }


def in_time(words: list[str], ranks: int, how: str, lasts: float) -> tuple[int, bool]:
    """Return the exit status of a job that has so many seconds, and whether it had to be killed some seconds later."""
    end = time.time() + lasts
    told = {"SLURM_JOB_END_TIME": str(int(end))} if how == "its end is told" else {}
    process, warned, killed = job(words, ranks, **told), bool(told), False
    while process.poll() is None:
        if not warned and time.time() > end - 0.4 * lasts:
            os.killpg(process.pid, signal.SIGUSR1 if how.startswith("USR1") else signal.SIGTERM)
            warned = True
        if not killed and time.time() > end + 10.0:  # KillWait of SLURM is 30 s
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    return waited(process), killed


def difference() -> float | None:
    """Return the largest difference of the solution from that of the run that nobody has ended."""
    if not Path("out/solution.npz").exists():
        return None
    return float(np.abs(solution("out") - solution("whole")).max())


def ten(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of ten interruptions by TERM; where ranks stay, a reference on as many is the oracle."""
    draw = random.Random(options.seed)
    for turns in ([1], [2], [1, 2]):
        steps = 400
        shutil.rmtree("whole", ignore_errors=True)
        assert waited(job(line(0.0, steps, "--out whole"), turns[0])) == 0
        clean()
        codes: list[int] = []
        while not codes or codes[-1] == 143:
            before = json.loads(Path("out/result.json").read_text())["steps"] if codes else 0
            process = job(line(0.02, steps, KEPT), turns[len(codes) % len(turns)])
            if len(codes) < 10:
                rows_are_there(before + draw.randrange(4, 24))
                os.kill(process.pid, signal.SIGTERM)
            codes.append(waited(process))
        faults = faults_of_files() + ([] if codes == [143] * 10 + [0] else [f"exit status {codes}"])
        apart = difference()
        bound = 0.0 if len(turns) == 1 else 1e-12
        faults += [] if apart is not None and apart <= bound else [f"difference {apart}"]
        ranks = " and ".join(map(str, turns)) + (" in turn" if len(turns) > 1 else "")
        yield {
            "part": "ten",
            "what": f"ended by TERM and resumed, ranks {ranks}",
            "times": len(codes) - 1,
            "faults": faults,
            "difference": apart,
        }


def disk(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what came of disks that are full: the message names path and reason, the run comes to its end."""
    for size in (0, 500, 2000, 4000, 6000, 10000):
        clean()
        words = line(0.0, 40, "--checkpoint c.ckpt --checkpoint-every 5steps --out out")
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); {MLDD}"
        run = subprocess.run([sys.executable, "-c", limit, *words], capture_output=True, text=True, timeout=WAIT)
        yield full(f"no file above {size} bytes", run)
    folder = Path("small")
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            words = line(0.0, 200, "--checkpoint small/c.ckpt --checkpoint-every 5steps --out out")
            clean()
            run = subprocess.run([sys.executable, "-c", MLDD, *words], capture_output=True, text=True, timeout=WAIT)
            yield full("checkpoints on a disk of 16 kB", run, "small/")
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def full(what: str, run: subprocess.CompletedProcess[str], where: str = "") -> Row:
    """Return the row of a run on a full disk."""
    said = [text for text in run.stderr.splitlines() if text]
    lost = [text for text in said if "error" in text and "could not be written" in text]
    names = sorted({text.split(" could not")[0].split()[-1] for text in lost})
    faults = [fault for fault in faults_of_files() if fault.split(":")[0] not in names]  # of those that were said
    faults += [f"traceback: {said[-1]}" for text in said if "Traceback" in text]
    finished = Path("out/result.json").exists() or any("result.json" in text for text in lost)
    early = any("must be writable" in text or "history.csv could not" in text for text in said)  # nothing can be kept
    faults += [] if finished or early else [f"neither a result nor a word on it: {said[-1:]}"]
    faults += [] if run.returncode in (1, 2) or not lost else [f"exit status {run.returncode}"]
    faults += [f"no reason: {text}" for text in lost if "File too large" not in text and "No space left" not in text]
    faults += [] if not where or any(where in text for text in lost) else ["the path is not named"]
    return {
        "part": "disk",
        "what": what,
        "times": 1,
        "faults": faults,
        "exit status": run.returncode,
        "not written": names,
        "kept": sorted(path.name for path in Path("out").glob("*")) if Path("out").exists() else [],
    }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "kills": kills,
    "ranks": kills_of_ranks,
    "signals": signals,
    "slurm": slurm,
    "ten": ten,
    "disk": disk,
}


def write(rows: list[Row], out: Path) -> None:
    """Write the table as JSON and as text; rows of other parts stay."""
    ran = {row["part"] for row in rows}
    file = out / "signals.json"
    old: list[Row] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = [row for part in PARTS for row in [*(r for r in old if r["part"] not in ran), *rows] if row["part"] == part]
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [f"{'part':<8} {'what':<58} {'times':>5} {'faults':>6}  more"]
    for row in rows:
        more = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("part", "what", "times", "faults"))
        lines.append(f"{row['part']:<8} {row['what']:<58} {row['times']:>5} {len(row['faults']):>6}  {more}")
    (out / "signals.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run the parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="of the signals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "paper" / "results" / "trust")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("slow.py").write_text(METHOD, encoding="utf-8")
        load_all()
        for part in options.only:
            rows = []
            for row in PARTS[part](options):
                rows.append(row)
                print(row, flush=True)
            write(rows, options.out)
        os.chdir("/")


if __name__ == "__main__":
    main()
