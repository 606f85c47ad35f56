"""Build the pages of this folder: results.md from the files of the experiments, or HTML of all pages by pandoc.

    python paper/build.py --results
    python paper/build.py [--out build/paper]

Every table of results.md names its file and its command. Pandoc comes
with the package pypandoc_binary; where it and LaTeX are there, paper.pdf is made as well.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import beside_peers
import papers
from tables import RESULTS, Row, median_of, read, table

HERE = Path(__file__).parent
PAGES = ("paper", "methods", "results")


def full_batch_rows() -> list[Row]:
    """Return medians at the last target of every graph and method; of several settings, that of the fewest sums."""
    found = []
    for path in sorted((RESULTS / "gnn_decomposition").glob("full_batch_*_1.csv")):
        rows = read(f"gnn_decomposition/{path.name}")
        last = min(float(row["target"]) for row in rows)
        kinds: dict[str, dict[str, list[Row]]] = {}
        for row in (row for row in rows if float(row["target"]) == last):
            kinds.setdefault(row["method"], {}).setdefault(row["setting"], []).append(row)
        for method, settings in kinds.items():
            best = min(settings.values(), key=lambda of: median_of(of, "synchronisations"))
            made = {name: median_of(best, name) for name in ("synchronisations", "work", "cpu_seconds", "test_score")}
            found.append(
                {"graph": path.stem.split("_")[2], "target": last, "method": method, "seeds": len(best), **made}
            )
    return found


def full_batch() -> str:
    """Return what a metric, coarse graphs and local training save on a full batch."""
    head = ["graph", "loss", "method", "seeds", "synchronisations", "work", "CPU seconds", "test"]
    return table(head, [row.values() for row in full_batch_rows()])


def data_rich_rows(name: str = "data_rich") -> list[Row]:
    """Return medians over seeds of every case and method of a table."""
    names = ("problem", "nodes", "parts", "layers", "method", "subdomains", "overlap", "local_steps")
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in read(f"gnn_decomposition/{name}.csv"):
        kinds.setdefault(tuple(row[key] for key in names), []).append(row)
    shown_too = ("synchronisations", "halo_MB", "work", "validation_loss", "rollout_skill")
    return [
        {
            **dict(zip(names, kind, strict=True)),
            "seeds": len(rows),
            **{key: median_of(rows, key) for key in shown_too},
        }
        for kind, rows in kinds.items()
    ]


def data_rich() -> str:
    """Return what local training reaches where samples never end."""
    rows = data_rich_rows()
    return table([name.replace("_", " ") for name in rows[0]], [row.values() for row in rows])


def growth() -> str:
    """Return what local training reaches with more and more parts."""
    names = ("nodes", "parts", "method", "local_steps", "seeds", "synchronisations", "work", "validation_loss")
    rows = sorted(data_rich_rows("growth"), key=lambda row: (int(row["nodes"]), row["method"], row["local_steps"]))
    return table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows])


def networks() -> str:
    """Return seconds of two real ranks on emulated networks."""
    rows = read("gnn_decomposition/networks.csv")
    names = "nodes method synchronisations halo_MB infiniband infiniband_speedup sites sites_speedup".split()
    return table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows])


def grids() -> str:
    """Return CPU seconds of bound-constrained energies over those of SNES with multigrid."""
    names = ("problem", "n", "solver", "steps", "cpu", "peer_cpu", "ratio", "distance")
    rows = [row for row in read("peers_pde.json") if row.get("ratio")]
    return table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows])


def lbfgs() -> str:
    """Return evaluations of L-BFGS beside its peers."""
    rows = []
    for problem, found in read("lbfgs.json").items():
        if isinstance(found, dict):
            for name, runs in found["runs"].items():
                rows.append(
                    (problem, found["target"], name, len(runs), *map(statistics.median, zip(*runs, strict=True)))
                )
    return table(["problem", "loss", "method", "seeds", "evaluations", "CPU seconds"], rows)


def startup() -> str:
    """Return CPU seconds of whole processes."""
    found = read("startup.json")
    rows = [*found["seconds"].items(), *((f"cora, part of {name}", seconds) for name, seconds in found["cora"].items())]
    rows += [(f"{name}, over torch_geometric", ratio) for name, ratio in found["ratio"].items()]
    return table(["process", "CPU seconds"], rows)


def o96() -> str:
    """Return what the ranks of a training on an o96 grid hold, take and read, and its losses step by step."""
    runs = [run["rows"] for run in read("forecasts/o96.json")["runs"].values()]
    names = [name for name in runs[0][0] if name not in ("status", "training")]
    plain = [
        [f"{of:.4g}" if isinstance(of := row[name], float) else of for name in names] for rows in runs for row in rows
    ]
    held = table(names, plain)
    steps = [row["step"] for row in runs[0][0]["training"]]
    losses = []
    for rows in runs:
        training = rows[0]["training"]
        losses.append([len(rows), *(f"{row['validation_loss']:.6f}" for row in training), training[-1]["seconds"]])
    return held + "\n" + table(["ranks", *(f"step {step}" for step in steps), "seconds"], losses)


def layers() -> str:
    """Return milliseconds of a value and gradient of graph networks beside their peers."""
    peers = ("plain", "geometric", "geometric, A X kept")
    alone = ("malloc_as_it_is", "products_of_plain")
    rows = [
        [row["data"], row["model"], row["hidden"], row["ms"]["mldd"]]
        + [row["ratio"].get(peer, "") for peer in peers]
        + [row.get(key, "") for key in alone]
        for row in read("layers.json")["rows"]
    ]
    head = ["data", "model", "hidden", "ms", *(f"over {peer}" for peer in peers)]
    return table([*head, "over plain, malloc as it is", "dense products over plain"], rows)


def windows() -> str:
    """Return milliseconds of a step of Adam of window networks beside their peers."""
    peers = ("torch", "jax loop", "jax scan")
    rows = [
        [row["model"], row["dtype"], row["ms"]["mldd"], *(row["ratio"].get(peer, "") for peer in peers)]
        for row in read("windows.json")["steps"]
    ]
    return table(["model", "precision", "ms", *(f"over {peer}" for peer in peers)], rows)


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


def anemoi_rows() -> str:
    """Return the rows that Anemoi's ranks read of each other, for three numberings of one mesh."""
    head = ("mesh", "data nodes", "hidden nodes", "ranks", "role")
    kinds: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read("anemoi/rows.csv"):
        kinds.setdefault(tuple(row[name] for name in head), {})[row["numbering"]] = f"{row['rows']} ({row['largest']})"
    numberings = ("as numbered", "nested for 2 to 64", "for these ranks alone")
    rows = [[*kind, *(found.get(name, "") for name in numberings)] for kind, found in kinds.items()]
    return table([*head, *numberings], rows)


def anemoi_runs() -> str:
    """Return the losses where the steps of Anemoi's tiny training begin."""
    rows = read("anemoi/runs.csv")
    names = [name for name in rows[0] if name != "seconds"]
    return table(names, [[row[name] for name in names] for row in rows])


def as_it_is(name: str) -> Callable[[], str]:
    """Return what gives all columns of a file."""

    def made() -> str:
        rows = read(name)
        return table(list(rows[0]), [row.values() for row in rows])

    made.__name__ = Path(name).stem
    return made


# Sections: title, file, command, what the table says, and what makes it.
SECTIONS: list[tuple[str, str, str, str, Callable[[], str]]] = [
    (
        "Where data are plentiful: local training of overlapping parts",
        "gnn_decomposition/data_rich.csv",
        "experiments/gnn_decomposition/data_rich.py",
        "Operator learning, equally many gradient steps from the same starts; medians over the seeds. Work is that of "
        "the busiest rank over its share of synchronous steps.",
        data_rich,
    ),
    (
        "The same cut into 2 to 64 parts",
        "gnn_decomposition/growth.csv",
        "experiments/gnn_decomposition/growth.py",
        "Parts whose overlap makes local losses exact, eight samples per step, 400 gradient steps; synchronous Adam "
        "is the same run for any number of parts. Control variates and averages five local steps late beside them.",
        growth,
    ),
    (
        "The same on a network",
        "gnn_decomposition/networks.csv",
        "mpiexec -n 2 python -m mpi4py experiments/gnn_decomposition/networks.py",
        "Seconds of two real ranks whose messages are held back, and their ratio to the first row of the same size.",
        networks,
    ),
    (
        "On a full batch: a metric of the first layer, coarse graphs, local training",
        "gnn_decomposition/full_batch_cora_1.csv",
        "experiments/gnn_decomposition/full_batch.py GRAPH",
        "The last of three training losses of every graph; medians over seeds, set-up inside, inf for not reached. "
        "`rows` is L-BFGS scaled by rows, `white` the same with metric=inputs, `white-nested` after nested iteration.",
        full_batch,
    ),
    (
        "Bound-constrained energies beside SNES with multigrid",
        "peers_pde.json",
        "experiments/benchmarks/peers_pde.py",
        "To 1e-8 of the first projected gradient, one thread, set-up inside, medians of runs that alternate with the "
        "peer: vinewtonrsls, assembled matrix, Galerkin multigrid, a sequence of grids. Below 1 mldd is faster.",
        grids,
    ),
    (
        "L-BFGS beside SciPy and torch",
        "lbfgs.json",
        "experiments/benchmarks/lbfgs.py",
        "Evaluations of value and gradient, and CPU seconds, until a loss is reached, from the same starts.",
        lbfgs,
    ),
    (
        "Graph layers beside plain torch and torch_geometric",
        "layers.json",
        "experiments/benchmarks/layers.py",
        "One value and gradient of two layers, float32, one thread; ratios of CPU time, below 1 mldd is faster. mldd "
        "is prepared as by its commands, which let malloc keep what is freed, and once with malloc as it is; the "
        "dense products alone are what no arrangement of the rest can come below.",
        layers,
    ),
    (
        "Window networks beside torch and JAX",
        "windows.json",
        "experiments/benchmarks/windows.py",
        "A step of Adam, one thread; ratios of CPU time, below 1 mldd is faster.",
        windows,
    ),
    (
        "Starting",
        "startup.json",
        "experiments/benchmarks/startup.py",
        "CPU time of whole processes, and of 50 steps on Cora with its parts and beside torch_geometric.",
        startup,
    ),
    (
        "Networks of a user's own",
        "user_networks.json",
        "experiments/benchmarks/user_networks.py",
        "Full-batch training by Adam beside a plain loop of torch_geometric: same start, rate, epochs, threads. gatv2 "
        "and pna have batch normalisation: the loop's running averages lag behind after few epochs, those of mldd fit "
        "the last parameters, whence the higher accuracy.",
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
        "Anemoi: rows that ranks read of each other",
        "anemoi/rows.csv",
        "experiments/anemoi/rows.py",
        "In all, and the most of a rank, for the edges of encoder, processor (per layer) and decoder; numberings by "
        "`mldd anemoi reorder`.",
        anemoi_rows,
    ),
    (
        "Anemoi: a tiny training by solvers of mldd",
        "anemoi/runs.csv",
        "experiments/anemoi/runs.py",
        "Losses where the steps begin. Every step has another sample: they show what agrees with what. A resumed "
        "training draws the samples of its second half anew.",
        anemoi_runs,
    ),
    (
        "Anemoi: the same losses under other numbers",
        "anemoi/renumbering.csv",
        "experiments/anemoi/renumbering.py",
        "AdamW in float32 before and after `mldd anemoi reorder`: sums over nodes are formed in another order.",
        as_it_is("anemoi/renumbering.csv"),
    ),
    (
        "Anemoi: a start from a coarser mesh",
        "anemoi/coarse_start.csv",
        "experiments/anemoi/coarse_start.py",
        "Validation losses on all cells; seconds and synchronisations include the training on the coarser mesh, 60 "
        "steps. One seed, on a busy machine.",
        as_it_is("anemoi/coarse_start.csv"),
    ),
    (
        "Anemoi: 2 m temperature over the British Isles",
        "anemoi/era5_uk.csv",
        "experiments/anemoi/both_worlds.py --methods AdamW L-BFGS DD-ADAGB2 --seeds 0 1",
        "Root mean square errors in K, 6 h ahead, in equal process time; rows `mldd: ...` are of mldd's own network in "
        "the same run, whose longer trainings are in `results/forecasts/era5_uk.csv`.",
        as_it_is("anemoi/era5_uk.csv"),
    ),
    (
        "Anemoi: rates and batches that were tried",
        "anemoi/era5_uk_tuning.csv",
        "experiments/anemoi/both_worlds.py",
        "The least validation error in K of one seed, each in the same process time; L-BFGS and ASPQN have no rate.",
        as_it_is("anemoi/era5_uk_tuning.csv"),
    ),
    (
        "Weather on an o96 grid",
        "forecasts/o96.json",
        "experiments/forecasts/o96.py --data DATA.zarr",
        "A row per rank: what it holds and reads, largest memory, least seconds of a sample. Then the loss of a "
        "training on four samples of the validation part, a row per number of ranks; 1 is persistence over the "
        "training part.",
        o96,
    ),
    (
        "Weather on an o320 grid, modelled",
        "forecasts/o320.csv",
        "experiments/forecasts/o320.py",
        "Rows are counted, times are those of the cost model, memory follows from the trainings on o96.",
        as_it_is("forecasts/o320.csv"),
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
    *papers.SECTIONS,
    *beside_peers.sections(),
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
            text += [f"## {title}\n", f"{says} `results/{name}`, by `{command}`.\n"]
            picture = HERE / "figures" / f"{make.__name__}.png"
            text += [f"![{title}](figures/{picture.name})\n"] if picture.exists() else []
            text.append(make())
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
    parser.add_argument("--results", action="store_true", help="write results.md, and no HTML")
    options = parser.parse_args()
    if options.results:
        (HERE / "results.md").write_text(results(), encoding="utf-8")
        return
    if lost := unfounded((HERE / "paper.md").read_text(encoding="utf-8")):
        parser.exit(1, f"paper.md has numbers that are in no table of results.md: {' '.join(lost)}\n")
    import pypandoc

    options.out.mkdir(parents=True, exist_ok=True)
    for folder in ("results", "figures"):
        shutil.copytree(HERE / folder, options.out / folder, dirs_exist_ok=True)
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
