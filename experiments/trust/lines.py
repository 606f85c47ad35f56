"""What becomes of command lines that make no sense: they run, are refused in one line, or show a fault.

    OMP_NUM_THREADS=1 python experiments/trust/lines.py [--lines 2000] [--first 0] [--seconds S] [--out DIR]

Words are drawn at random: commands, problems and solvers with any of their keys, options, options of PETSc, each with
values that fit or do not (negative, huge, no number, nests of parentheses, letters of other alphabets, bytes that are
no text), and some lines are changed letter by letter. Each line is run in a forked process of its own with a limit of
memory and of time.

    ran         exit status 0
    refused     exit status 2 (or 1: a run that failed) and one line that begins with "mldd: error: "
    traceback, hang, abort, silent, unexpected     faults: the last is an error that nobody has foreseen
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.trust import mutations
from mldd.command import names
from mldd.command.cli import main as mldd
from mldd.command.keys import SOLVERS, default_of, keys_of

SEED = 20261128
OUT = Path(__file__).parents[2] / "paper" / "results" / "trust"
SECONDS, BYTES = 60.0, 8 * 2**30  # per line
FAULTS = ("traceback", "hang", "abort", "silent", "unexpected")
Random = np.random.Generator

# Small problems, with keys that keep them small; others are made at once in any size.
PROBLEMS = ("quadratic:n=7", "obstacle:n=7", "membrane:n=7", "minimal-surface:n=7", "bratu:n=7", "morebv:n=7")
PROBLEMS += ("digits:hidden=2", "sbm:hidden=2", "plain-npz.npz:hidden=2")
PROBLEMS += ("whole.pt:hidden=2", "whole.nc", "shards", "texas")
PROBLEMS += ("poisson1d:points=20,depth=1,width=4", "forchheimer", "ignition:n=7", "sbm-own:hidden=2")
ODD = ("-1", "0", "1", "2", "3", "0.5", "-0.5")
ODD += ("nan", "inf", "-inf", "1e400", "1e-400", "2147483648", "9223372036854775808")
ODD += ("18446744073709551616", "-9223372036854775809", "9" * 400, "", " ")
ODD += ("true", "none", "None", "cuda:99", "cpu:3", "x")
ODD += ("adam", "adagrad", "lbfgs(memory=2)", "dd-adagrad(local=adam)", "((")
ODD += ("))", "(" * 50 + ")" * 50, "a=b", "=", ",", ":")
ODD += ("\u00e9\u4e2d\u6587", "\u0661\u0662", "\udcff", "\x00", "no/../..", "/dev/zero")
ODD += ("/dev/null", "1:2:3", "1:x", "~", "*", "%s", "{0}")
COMMANDS = ("train",) * 12 + ("compare", "compare", "partition", "list", "predict", "plot", "data", "info", "nonsense")
OPTIONS = ("--parts", "--overlap", "--levels", "--combine", "--local-steps")
OPTIONS += ("--atol", "--rtol", "--target", "--norm", "--prices")
OPTIONS += ("--data", "--device", "--dtype", "--seed", "--seeds")
OPTIONS += ("--validate-every", "--patience", "--keep", "--log", "--resume")
OPTIONS += ("--checkpoint", "--nonsense", "--max-second")
USUAL = {"--combine": ("asm", "ras", "wasm"), "--norm": ("2", "inf"), "--dtype": ("float32", "float64")}
USUAL |= {"--device": ("cpu", "auto")}
PETSC = ("-tao_type", "-snes_type", "-ksp_type", "-pc_type")
PETSC += ("-tao_max_it", "-tao_monitor", "-log_view", "-options_left", "-help")
PETSC += ("-tao_ls_type", "-malloc_debug", "-tao_gatol", "-info", "-vec_type", "-mat_type", "-nonsense")
PETSC_VALUES = ("pounders", "brgn", "almm", "blmvm", "python", "shell")
PETSC_VALUES += ("nonsense", "newtonls", "fas", "gmres", "cuda", "-1", "")


def pick(random: Random, of: Any) -> Any:
    """Return one of a sequence."""
    return of[int(random.integers(len(of)))]


def spec(random: Random, text: str, kind: type | None) -> str:
    """Return a name with up to three keys, which have odd values or those of another."""
    keys = list(keys_of(kind)) if kind is not None else []
    count = int(random.integers(4)) if random.random() < 0.6 else 0
    given = []
    for _ in range(count):
        key = pick(random, keys) if keys and random.random() < 0.95 else pick(random, ODD)
        usual = default_of(kind, key) if kind is not None and key in keys and random.random() < 0.7 else MISSING
        written = ":".join(map(str, usual)) if isinstance(usual, tuple) else usual
        value = pick(random, ODD) if usual is MISSING else written
        given.append(f"{key}={value}")
    if not given:
        return text
    return text + ("," if ":" in text else ":") + ",".join(given)


def kinds() -> dict[str, Any]:
    """Return the classes of problems and solvers by their texts."""
    made = {text: names.problem_spec(text).kind for text in PROBLEMS}
    return made | {name: names.solver_spec(name).kind for name in SOLVERS}


def words_of(random: Random, known: dict[str, Any]) -> list[str]:
    """Return the words of a command line."""
    command = pick(random, COMMANDS)
    problem = pick(random, PROBLEMS)
    solver = pick(random, list(SOLVERS))
    one, other = spec(random, problem, known[problem]), spec(random, solver, known[solver])
    if random.random() < 0.1:
        other = f"{pick(random, list(SOLVERS))}:local={other.replace(':', '(', 1)}" + ")" * (":" in other)
    new = pick(random, ("p.csv", "fig.png", *ODD))
    words = {
        "train": ["train", one, "--solver", other],
        "compare": ["compare", one, "--solvers", f"{other},{pick(random, list(SOLVERS))}"],
        "partition": ["partition", one, "--parts", pick(random, ODD), "--quiet"],
        "list": ["list", pick(random, (problem, solver, *ODD))],
        "predict": ["predict", pick(random, ("run", "whole.model", *ODD)), pick(random, (one, *ODD)), "--out", new],
        "plot": ["plot", pick(random, ("run", *ODD)), "--against", pick(random, ODD), "--out", new],
        "data": ["data", pick(random, ("checksum", "x")), pick(random, ("whole.pt", *ODD))],
        "info": ["info"],
        "nonsense": [pick(random, ODD)],
    }[command]
    if command in ("train", "compare"):
        for _ in range(int(random.integers(3))):
            option = pick(random, OPTIONS)
            usual = USUAL.get(option, ("1", "2"))
            words += [option, pick(random, usual if random.random() < 0.7 else ODD)]
        if random.random() < 0.15:
            words += [pick(random, PETSC), pick(random, PETSC_VALUES)]
        words += ["--steps", "2", "--max-seconds", "3"] + ["--quiet"] * int(random.integers(2))
    if random.random() < 0.1:
        words = garbled(random, words)
    return words


def garbled(random: Random, words: list[str]) -> list[str]:
    """Change a word letter by letter, leave one out, or say one twice."""
    made, place = list(words), int(random.integers(len(words)))
    what = int(random.integers(4))
    if what == 0:
        del made[place]
    elif what == 1:
        made.insert(place, made[place])
    else:
        letters = list(made[place])
        for _ in range(int(random.integers(1, 4))):
            letters.insert(int(random.integers(len(letters) + 1)), pick(random, list("(),:=-.0x\u00e9\t\n ")))
        made[place] = "".join(letters)
    return made


# ------------------------------------------------------------------------------------------------ processes


def judged(words: list[str]) -> dict[str, Any]:
    """Run a command line in a process of its own; return what came of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        for limit, most in ((resource.RLIMIT_AS, BYTES), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(limit, (most, most))
        sys.stdout, sys.stderr = (os.fdopen(k, "w", encoding="utf-8", errors="backslashreplace") for k in (1, 2))
        code = 99
        try:
            code = mldd(words)
            sys.stdout.flush()
        except BaseException as error:
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    begin = time.monotonic()
    text, hung = heard(reading)
    os.close(reading)
    if hung:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    came = "hang" if hung else kind_of(code, text)
    seconds = round(time.monotonic() - begin, 2)
    said = text[-600:] if came in FAULTS else ""
    return {"words": words, "outcome": came, "status": code, "seconds": seconds, "said": said}


def heard(pipe: int) -> tuple[str, bool]:
    """Return what a process says until it ends, and whether it took too long."""
    content, until = b"", time.monotonic() + SECONDS
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(pipe, 2**16)
        if not piece:
            return content.decode("utf-8", "replace"), False
        content += piece
    return content.decode("utf-8", "replace"), True


def kind_of(code: int, text: str) -> str:
    """Say what came of a line that has ended."""
    errors = [line for line in text.splitlines() if line.startswith("mldd: error: ")]
    if "Traceback" in text:
        return "traceback"
    if code < 0 or "PETSC ERROR" in text:
        return "abort"
    if code == 0:
        return "ran"
    if "--debug shows where" in text and "does not fit into memory" not in text:
        return "unexpected"
    if code == 1 and ("failed: " in text or "diverged" in text):  # a row of a comparison
        return "refused"
    return "refused" if len(errors) == 1 and code in (1, 2) and len(errors[0]) < 3000 else "silent"


def fuzz(count: int, first: int, work: Path, seconds: float = np.inf) -> list[dict[str, Any]]:
    """Run `count` lines in a folder with files of all formats, fewer where the time is up before."""
    mutations.write_whole(work)
    os.chdir(work)
    known = kinds()
    found: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    for k in range(first, first + count):
        if time.monotonic() > until:
            break
        found.append(judged(words_of(np.random.default_rng([SEED, k]), known)))
        if found[-1]["outcome"] in FAULTS:
            print(k, json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the lines, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first line")
    parser.add_argument("--seconds", type=float, default=np.inf, help="then no other line is begun")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    out = options.out.absolute()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        found = fuzz(options.lines, options.first, Path(work), options.seconds)
        os.chdir("/")
    made = {
        "lines": len(found),
        "outcomes": dict(Counter(entry["outcome"] for entry in found)),
        "exit status": dict(Counter(str(entry["status"]) for entry in found)),
        "slowest (s)": max(entry["seconds"] for entry in found),
        "faults": [entry for entry in found if entry["outcome"] in FAULTS],
        "seed": SEED,
        "seconds": round(time.perf_counter() - begin),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "lines.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=1))
    sys.exit(bool(made["faults"]))


if __name__ == "__main__":
    main()
