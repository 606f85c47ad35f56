"""What becomes of files that are damaged or hostile: read, refused in one line, or a fault?

    OMP_NUM_THREADS=1 python experiments/trust/files.py [--files 20000] [--formats npz,pt] [--first 0] [--out DIR]

Every file is one that mldd has written or reads, with one change: cut, flipped, overwritten, spliced, with huge
numbers, other text, another suffix, or contents that make no sense (experiments/trust/mutations.py). It is read in
a forked process with a limit of memory and one of time per file. What may come of it:

    refused     one line of an error that the command line answers with exit status 2
    equal       read, and the arrays are those of the whole file
    other       read, and they are not: formats without a checksum cannot know, archives of arrays and torch must
    traceback, hang, crash, memory, execution    faults

Of every changed file that is read with other numbers, the checksum beside it (`mldd data checksum`) must refuse it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.trust import mutations
from mldd.command.values import one_line
from mldd.loop import read_csv
from mldd.models import load
from mldd.problems.data import checksum, load_graph, load_series, write_checksum
from mldd.problems.data.formats import apart, read_graphdata
from mldd.problems.data.shard_files import read as read_shards

SEED = 20261127
OUT = Path(__file__).parents[2] / "paper" / "results" / "trust"
_BATCH = 200  # files of a process
SECONDS, BYTES = 20.0, 6 * 2**30  # per file
FAULTS = ("traceback", "hang", "crash", "memory", "execution")
PROOF = "proof"  # a file that hostile pickles would make
VERIFIED = ("npz", "plain npz", "series npz", "pt", "shards", "model")  # formats with checksums, which are compared
SUFFIXES = (".npz", ".pt", ".nc", ".nc4", ".zarr", ".grib", ".txt")


# ------------------------------------------------------------------------------------------------ reading


def of_graph(path: Path) -> str:
    """Read a graph; return the checksum of what is in it."""
    return load_graph(path).digest


def of_series(path: Path) -> str:
    """Read a series; return the checksum of what is in it."""
    series = load_series(path, variables=())
    return series.digest


def of_shards(path: Path) -> str:
    """Read all shards of a graph."""
    shard = read_shards(path)
    edges, data = shard.edges, shard.data
    return checksum(shard.numbers, edges.indptr, edges.indices, data.labels, np.asarray(data.features))


def of_model(path: Path) -> str:
    """Load a model and predict by it."""
    return checksum(*load(path).predict("sbm")["probability"])


def of_history(path: Path) -> str:
    """Read a history."""
    return repr(read_csv(path).records)


def of_graphdata(path: Path) -> str:
    """Read pickled matrices."""
    arrays = read_graphdata(path.read_bytes(), str(path))
    return checksum(arrays.edge_index, arrays.features.data, arrays.labels)


READERS: dict[str, Callable[[Path], str]] = {
    "npz": of_graph,
    "plain npz": of_graph,
    "series npz": of_series,
    "pt": of_graph,
    "netcdf 3": of_series,
    "netcdf 4": of_series,
    "grib": of_series,
    "zarr 2": of_series,
    "zarr 3": of_series,
    "shards": of_shards,
    "graphdata": of_graphdata,
    "model": of_model,
    "history": of_history,
}
# How often a format comes, as far as it costs: one in so many.
RARE = {"grib": 4, "netcdf 4": 4, "zarr 2": 4, "zarr 3": 4, "model": 4}


# ------------------------------------------------------------------------------------------------ one file


def changed(name: str, whole: Path, folder: Path, random: np.random.Generator) -> tuple[Path, str]:
    """Write a changed copy of a file or folder; return where, and what was done to it."""
    target = folder / whole.name
    inner = shutil.copytree(whole, target) if whole.is_dir() else Path(shutil.copy(whole, target))
    if random.random() < 0.4 and rewritten(name, target, random):
        return target, "odd contents"
    if whole.is_dir():
        files = sorted(path for path in target.rglob("*") if path.is_file())
        inner = files[int(random.integers(len(files)))]
        if random.random() < 0.1:
            inner.unlink()
            return target, "a file is missing"
    content = inner.read_bytes()
    if inner.suffix == ".npz" and whole.is_dir() and random.random() < 0.5:
        inner.write_bytes(mutations.odd_archive(content, random, folder / PROOF))
        done = "odd contents"
    elif not whole.is_dir() and random.random() < 0.05:
        new = target.with_suffix(SUFFIXES[int(random.integers(len(SUFFIXES)))])
        os.replace(target, new)
        return new, "other suffix"
    else:
        done = list(mutations.BYTES)[int(random.integers(len(mutations.BYTES)))]
        inner.write_bytes(mutations.BYTES[done](content, random))
    if name == "shards" and inner.suffix == ".npz" and random.random() < 0.8:
        mutations.resealed(target)
    return target, done


def rewritten(name: str, path: Path, random: np.random.Generator) -> bool:
    """Write a file of the format with contents that make no sense; return whether the format has such."""
    engines = {"netcdf 3": {"engine": "scipy"}, "netcdf 4": {"engine": "h5netcdf"}, "zarr 2": {}}
    proof = path.parent / PROOF
    if name.endswith("npz"):
        path.write_bytes(mutations.odd_archive(path.read_bytes(), random, proof))
    elif name == "pt":
        path.write_bytes(mutations.odd_tensors(random, proof))
    elif name == "model":
        path.write_bytes(mutations.odd_tree(path.read_bytes(), random, proof))
    elif name in engines:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mutations.odd_dataset(path, random, **engines[name])
        except Exception:  # xarray refuses to write some of what is odd
            return False
    return name.endswith("npz") or name in ("pt", "model", *engines)


def outcome(read: Callable[[Path], str], path: Path, whole: str) -> tuple[str, str]:
    """Read a file; return what came of it, and what was said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
        return ("equal" if found == whole else "other"), ""
    except MemoryError as error:
        return "memory", repr(error)
    except (ValueError, OSError, ImportError) as error:
        text = one_line(error)
        return ("refused" if text and len(text) < 2000 else "traceback"), text
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"


def judged(name: str, number: int, whole: Path, digest: str, work: Path) -> dict[str, Any]:
    """Change a file, read it, and, where its numbers are others, read it again with the checksum beside it."""
    folder = work / f"{number}"
    folder.mkdir()
    random = np.random.default_rng([SEED, list(READERS).index(name), number])
    path, done = changed(name, whole, folder, random)
    came, said = outcome(READERS[name], path, digest)
    if (folder / PROOF).exists():
        came = "execution"
    sealed = ""
    if came == "other" and name not in ("shards", "graphdata", "model", "history"):
        shutil.copy(whole.with_name(whole.name + ".sha256"), path.with_name(path.name + ".sha256"))
        sealed = outcome(READERS[name], path, digest)[0]
    shutil.rmtree(folder, ignore_errors=True)
    return {"format": name, "number": number, "change": done, "outcome": came, "sealed": sealed, "said": said[:300]}


# ------------------------------------------------------------------------------------------------ processes


def worker(
    tasks: Sequence[tuple[str, int]], files: dict[str, Path], digests: dict[str, str], work: Path, out: int
) -> None:
    """Judge files, one line of JSON each; the parent watches the time."""
    apart._PATIENCE = 5.0
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, number in tasks:
        found = judged(name, number, files[name], digests[name], work)
        os.write(out, (json.dumps(found) + "\n").encode())


def run(
    tasks: list[tuple[str, int]], files: dict[str, Path], digests: dict[str, str], work: Path, seconds: float = np.inf
) -> list[dict[str, Any]]:
    """Judge all files; a process that hangs or crashes costs the file it was at, and another one goes on."""
    found: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    while len(found) < len(tasks) and time.monotonic() < until:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
            worker(tasks[len(found) :][:_BATCH], files, digests, work, writing)
            os._exit(0)
        os.close(writing)
        fault = watch(reading, found, min(len(found) + _BATCH, len(tasks)))
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if fault:
            name, number = tasks[len(found)]
            found.append({"format": name, "number": number, "change": "", "outcome": fault, "sealed": "", "said": ""})
    return found


def watch(pipe: int, found: list[dict[str, Any]], until: int) -> str:
    """Collect what a process says; return "hang" or "crash" where it ends otherwise than by having done its work."""
    rest, last = b"", time.monotonic()
    while len(found) < until:
        ready, _, _ = select.select([pipe], [], [], max(0.0, last + SECONDS - time.monotonic()))
        if not ready:
            return "hang"
        piece = os.read(pipe, 2**16)
        if not piece:
            return "crash"
        *lines, rest = (rest + piece).split(b"\n")
        found += [json.loads(line) for line in lines]
        last = time.monotonic() if lines else last
    return ""


def tables(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Count outcomes by format and by change, and list the faults."""
    counts: dict[str, dict[str, dict[str, int]]] = {"format": {}, "change": {}}
    for by, table in counts.items():
        for kind in dict.fromkeys(entry[by] for entry in found):
            table[kind] = dict(Counter(entry["outcome"] for entry in found if entry[by] == kind))
    others = [entry for entry in found if entry["outcome"] == "other"]
    unsealed = [entry for entry in found if entry["sealed"] not in ("", "refused")]
    return {
        "files": len(found),
        "outcomes": dict(Counter(entry["outcome"] for entry in found)),
        "other numbers refused by the checksum beside": sum(entry["sealed"] == "refused" for entry in found),
        "other numbers read in spite of the checksum beside": len(unsealed),
        "other numbers, by format and change": dict(Counter(f"{e['format']}: {e['change']}" for e in others)),
        "a library hung or crashed, apart": sum("its library" in entry["said"] for entry in found),
        "by format": counts["format"],
        "by change": counts["change"],
        "faults": [entry for entry in found if entry["outcome"] in FAULTS],
    }


def fuzz(count: int, formats: Sequence[str], first: int, work: Path, seconds: float = np.inf) -> list[dict[str, Any]]:
    """Judge `count` files of some formats, numbered from `first`."""
    (work / "whole").mkdir()
    files = mutations.write_whole(work / "whole")
    formats = [name for name in formats if files[name].exists()]  # a GRIB file is there where its set is
    digests = {}
    for name in formats:
        write_checksum(files[name])
        digests[name] = READERS[name](files[name])
    apart._SERVER.stop()
    shares = {name: 1 / RARE.get(name, 1) for name in formats}
    total = sum(shares.values())
    tasks = [(name, first + k) for name in formats for k in range(round(count * shares[name] / total))]
    np.random.default_rng(SEED).shuffle(tasks)  # where the time is up before the end, all formats have had their share
    return run(tasks, files, digests, work, seconds)


def main() -> None:
    """Judge files, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--formats", default=",".join(READERS))
    parser.add_argument("--first", type=int, default=0, help="number of the first change")
    parser.add_argument("--seconds", type=float, default=np.inf, help="then no other batch is begun")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        found = fuzz(options.files, options.formats.split(","), options.first, Path(work), options.seconds)
    made = tables(found) | {"seed": SEED, "seconds": round(time.perf_counter() - begin)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "files.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made | {"faults": made["faults"][:40]}, indent=1))
    sys.exit(bool(made["faults"]))


if __name__ == "__main__":
    main()
