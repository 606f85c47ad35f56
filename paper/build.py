"""Build the pages of this folder: results.md from the files of the experiments, then HTML of all pages by pandoc.

    python paper/build.py [--out build/paper] [--results]

Every table of results.md names its file and its command. With ``--results`` that page alone is written. Pandoc comes
with the package pypandoc_binary; where it and LaTeX are there, paper.pdf is made as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = ("paper", "methods", "results", "tutorial", "installation", "clusters", "silent_errors")
Row = dict[str, Any]


def read(name: str) -> Any:
    """Return the rows of a file of results; lines that begin with # are its configuration."""
    path = RESULTS / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return list(csv.DictReader(lines))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of Markdown; numbers have three digits."""
    cells = [[shown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]) + "\n"


def shown(cell: Any) -> str:
    """Return a cell as text."""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def books() -> str:
    """Return how well the books agree with what was measured."""
    head = [
        "ranks",
        "prices",
        "rows",
        "counted over measured, median",
        "smallest",
        "largest",
        "within 0.8 to 1.25",
    ]
    kinds: dict[tuple[int, str], list[float]] = {}
    for row in read("books.json"):
        if row["ratio_units"]:
            kinds.setdefault((row["ranks"], row["prices"]), []).append(row["ratio_units"])
    rows = [
        (*kind, len(of), statistics.median(of), min(of), max(of), sum(0.8 <= value <= 1.25 for value in of))
        for kind, of in sorted(kinds.items())
    ]
    return table(head, rows)


def user_networks() -> str:
    """Return how networks of a user's own compare with a plain loop."""
    head = ["graph", "network", "ranks", "test accuracy, loop", "mldd", "time of an epoch, mldd over loop"]
    rows = []
    for row in read("user_networks.json"):
        if "loop_epoch" in row:
            of = [f"{row[f'{name}_test']:.3f} ± {row[f'{name}_deviation']:.3f}" for name in ("loop", "mldd")]
            rows.append((row["graph"], row["net"], row["ranks"], *of, row["mldd_epoch"] / row["loop_epoch"]))
    return table(head, rows)


def signals() -> str:
    """Return what came of kills, signals and full disks."""
    rows = [(row["part"], row["what"], row["times"], len(row["faults"])) for row in read("trust/signals.json")]
    return table(["part", "what", "times", "faults"], rows)


def fuzzing() -> str:
    """Return what came of damaged files and of lines that make no sense."""
    rows = []
    for what, name in (("files", "trust/files.json"), ("lines", "trust/lines.json")):
        found = read(name)
        rows.append((what, found[what], found["outcomes"].get("refused", 0), len(found["faults"])))
    return table(["what was damaged", "number", "refused in one line", "faults"], rows)


# Sections: title, file, command, what the table says, and what makes it.
SECTIONS: list[tuple[str, str, str, str, Callable[[], str]]] = [
    (
        "Networks of a user's own",
        "user_networks.json",
        "experiments/benchmarks/user_networks.py",
        "Full-batch training by Adam beside a plain loop of torch_geometric: same start, rate, epochs, threads.",
        user_networks,
    ),
    (
        "Books",
        "books.json",
        "experiments/benchmarks/books.py --prices measured",
        "Counted work of the busiest rank over its measured CPU time, in gradients of one process.",
        books,
    ),
    (
        "Kills, signals, time limits, full disks",
        "trust/signals.json",
        "experiments/trust/signals.py",
        "A fault is a damaged file, another result than that of the undisturbed run, or a rank that is left.",
        signals,
    ),
    (
        "Damaged files and lines",
        "trust/files.json",
        "experiments/trust/files.py and lines.py",
        "A fault is a crash, a hang, an answer of more than a line, memory without bound, or code that runs.",
        fuzzing,
    ),
]


def results() -> str:
    """Return the page of all results whose files are there."""
    text = [
        "---\ntitle: Results\n---\n",
        "# Results\n",
        "This page is written by `paper/build.py` from the files in `paper/results/`. Each section names its file and "
        "the command that makes it; configuration and machine stand in the file.\n",
    ]
    for title, name, command, says, make in SECTIONS:
        if (RESULTS / name).exists():
            text += [f"## {title}\n", f"{says} `results/{name}`, by `{command}`.\n", make()]
    return "\n".join(text)


def unfounded(text: str) -> list[str]:
    """Return the numbers of a text that are in no table of the results: every claim has a file."""
    found = set(re.findall(r"\d+(?:\.\d+)?", results()))
    prose = re.sub(r"^---$.*?^---$|`[^`]*`|\[@[^]]*\]|\$[^$]*\$", "", text, flags=re.M | re.S)
    return [number for number in re.findall(r"\d+(?:\.\d+)?", prose) if number not in found]


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "paper")
    parser.add_argument("--results", action="store_true", help="write results.md alone")
    options = parser.parse_args()
    (HERE / "results.md").write_text(results(), encoding="utf-8")
    if lost := unfounded((HERE / "paper.md").read_text(encoding="utf-8")):
        parser.exit(1, f"paper.md has numbers that are in no table of results.md: {' '.join(lost)}\n")
    if options.results:
        return
    import pypandoc

    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(RESULTS, options.out / "results", dirs_exist_ok=True)
    more = ["--standalone", "--mathml", "--toc", "--citeproc", f"--bibliography={HERE / 'paper.bib'}"]
    more += ["--css=paper.css", f"--lua-filter={HERE / 'links.lua'}"]
    shutil.copy(HERE / "paper.css", options.out)
    for page in PAGES:
        target = options.out / f"{page}.html"
        pypandoc.convert_file(str(HERE / f"{page}.md"), "html", outputfile=str(target), extra_args=more)
        print(target)
    if shutil.which("pdflatex"):
        pypandoc.convert_file(
            str(HERE / "paper.md"), "pdf", outputfile=str(options.out / "paper.pdf"), extra_args=more[3:5]
        )


if __name__ == "__main__":
    main()
