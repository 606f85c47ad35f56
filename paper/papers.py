"""The tables of the experiments that follow papers, for results.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tables import RESULTS, Row, median_of, read, table


def cells(rows: Sequence[Row], name: str) -> str:
    """Return the median of a column, with a > where a run has not reached its end; nothing where there are none.

    A dash stands for a median that is not finite.
    """
    if not rows:
        return ""
    reached = all(row.get("status", "converged").startswith(("converged", "target")) for row in rows)
    median = median_of(rows, name)
    if not math.isfinite(median):
        return "\u2013"
    return ("" if reached else "> ") + (f"{median:g}" if median >= 1000 else f"{median:.4g}")


def pictured(name: str, text: str) -> str:
    """Return a table with the picture of its file in front."""
    picture = RESULTS / name.replace(".csv", ".png")
    return f"![{name}](results/{picture.relative_to(RESULTS)})\n\n{text}" if picture.exists() else text


def across(name: str, rows: Sequence[str], column: str, cell: str, without: str = "") -> str:
    """Return a table with a row per values of `rows` and a column per value of `column`: medians over what else varies.

    A > stands where not all runs were successful. Rows of the method `without` are left out.
    """
    kinds: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in (row for row in read(name) if row.get("method", "-") != without):
        kinds.setdefault(tuple(row[key] for key in rows), {}).setdefault(row[column], []).append(row)
    heads = list(dict.fromkeys(value for found in kinds.values() for value in found))
    head = [*rows, *(f"{column} {value}" for value in heads)]
    lines = [[*kind, *(cells(found.get(value, []), cell) for value in heads)] for kind, found in kinds.items()]
    return table(head, lines)


def levels_of_adagrad() -> str:
    """Return the steps of ML-ADAGB2 on one to five levels."""
    name = "gratton2025recursive/levels.csv"
    return pictured(name, across(name, ("problem", "curvature"), "levels", "steps"))


def subdomains_of_adagrad() -> str:
    """Return the steps of DD-ADAGB2 on up to 64 subdomains."""
    name = "gratton2025recursive/subdomains.csv"
    return pictured(name, across(name, ("problem", "levels", "combine", "overlap"), "parts", "steps"))


def noise_of_adagrad() -> str:
    """Return the steps of ADAGB2 with inexact gradients."""
    name = "gratton2025recursive/noise.csv"
    return pictured(name, across(name, ("problem", "levels"), "noise", "steps"))


def networks_of_adagrad() -> str:
    """Return what ADAGB2 makes of networks with bounded weights."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in read("gratton2025recursive/networks.csv"):
        kinds.setdefault((row["network"], row["method"]), []).append(row)
    names = ("steps", "work", "synchronisations", "loss", "error", "accuracy")
    head = ["network", "method", "seeds", *names]
    return table(head, [[*kind, len(rows), *(cells(rows, name) for name in names)] for kind, rows in kinds.items()])


def depths() -> str:
    """Return steps and work of MOFFTR on one to four levels of depth."""
    name = "gratton2023multilevel/depth.csv"
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in read(name):
        kinds.setdefault((row["noise"], row["levels"]), []).append(row)
    costs = ("steps", "loss", "work_to_0.5", "work_to_0.2", "work_to_0.1")
    head = ["noise", "levels", "seeds", *(cost.replace("_", " ") for cost in costs)]
    rows = [[*kind, len(of), *(cells(of, cost) for cost in costs)] for kind, of in kinds.items()]
    return pictured(name, table(head, rows))


def curves(key: str) -> str:
    """Return test accuracies of APTS, and the published ones after 100 iterations."""
    name = f"{key}/curves.csv"
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in read(name):
        kinds.setdefault((row["method"], row["parts"]), []).append(row)
    at = [f"accuracy_{step}" for step in (10, 25, 50, 100)]
    head = ["method", "subdomains", "seeds", *(column.replace("_", " ") for column in at), "loss", "published, 100"]
    columns = [*at, "loss", "published_100"]
    rows = [[*kind, len(of), *(cells(of, column) for column in columns)] for kind, of in kinds.items()]
    return pictured(name, table(head, rows))


def window_networks() -> str:
    """Return errors of window networks."""
    name = "salvado2026fbpinn/windows.csv"
    return pictured(name, across(name, ("problem", "method"), "windows", "error"))


def corrections() -> str:
    """Return losses of local training on graphs with and without a correction."""
    name = "ramezani2022llcg/graphs.csv"
    return pictured(name, across(name, ("graph", "method"), "parts", "loss"))


def raspen() -> str:
    """Return the GMRES iterations of RASPEN and ASPIN."""
    name = "dolean2016raspen/counts.csv"
    return pictured(name, across(name, ("problem", "method", "overlap"), "parts", "krylov", without="nras"))


def aspin() -> str:
    """Return the GMRES iterations of ASPIN on energies."""
    name = "cai2002aspin/counts.csv"
    return pictured(name, across(name, ("problem", "method", "overlap"), "parts", "krylov", without="newton"))


def aspin_steps() -> str:
    """Return the outer steps of ASPIN and of Newton's method, which has no subdomains."""
    return across("cai2002aspin/counts.csv", ("problem", "method", "overlap"), "parts", "steps")


def schwarz_with_bounds() -> str:
    """Return the steps of nonlinear Schwarz with bounds."""
    name = "kothari2022bounds/counts.csv"
    return pictured(name, across(name, ("problem", "method"), "parts", "steps"))


def cavity() -> str:
    """Return the outer steps on the driven cavity."""
    return across("cai2002aspin/cavity.csv", ("reynolds", "method", "levels", "overlap"), "parts", "steps")


def cavity_krylov() -> str:
    """Return the GMRES iterations on the driven cavity."""
    name = "cai2002aspin/cavity.csv"
    return pictured(name, across(name, ("reynolds", "method", "levels", "overlap"), "parts", "krylov"))


def plane() -> str:
    """Return the outer steps in two dimensions."""
    return across("dolean2016raspen/plane.csv", ("problem", "method", "levels", "overlap"), "parts", "steps")


def plane_krylov() -> str:
    """Return the GMRES iterations in two dimensions."""
    name = "dolean2016raspen/plane.csv"
    return pictured(name, across(name, ("problem", "method", "levels", "overlap"), "parts", "krylov", "nras"))


def ratios() -> str:
    """Return update costs of L-BFGS over those of preconditioned methods, by what a local gradient costs."""
    name = "kopanicakova2024enhancing/ratios.csv"
    texts = [
        f"Ratios, a local gradient priced {how}:\n\n{across(name, ('problem', 'method'), 'target', column)}"
        for how, column in (("by its share of the layers", "ratio_share"), ("as a whole one", "ratio_device"))
    ]
    return pictured(name, "\n".join(texts))


# Sections: title, file, command, what the table says, and what makes it.
SECTIONS: list[tuple[str, str, str, str, Callable[[], str]]] = [
    (
        "ML-ADAGB2 against levels",
        "gratton2025recursive/levels.csv",
        "python -m experiments.gratton2025recursive.levels",
        "Outer steps until the projected gradient has fallen by 1e-5, 63 x 63 nodes; our reference run of the methods "
        "of arXiv 2507.11513, with Hessian products and to first order. > is not reached.",
        levels_of_adagrad,
    ),
    (
        "DD-ADAGB2 against subdomains",
        "gratton2025recursive/subdomains.csv",
        "python -m experiments.gratton2025recursive.subdomains",
        "The same for Schwarz methods on one and two levels, with one, two and four layers of nodes around every "
        "subdomain; the figure has medians over these. > is not reached in 300 steps.",
        subdomains_of_adagrad,
    ),
    (
        "Noise and rounding of gradients",
        "gratton2025recursive/noise.csv",
        "python -m experiments.gratton2025recursive.noise",
        "Outer steps until the exact projected gradient has fallen by 1e-3, on one and three levels: gradients rounded "
        "to bfloat16, and with relative Gaussian noise on every component.",
        noise_of_adagrad,
    ),
    (
        "ADAGB2 on networks with bounded weights",
        "gratton2025recursive/networks.csv",
        "python -m experiments.gratton2025recursive.networks",
        "First order; medians over the seeds at the end of a run, the last loss or the last step. error: of an "
        "operator network on new functions; accuracy: of test images in per cent. Our reference run of the methods of "
        "arXiv 2507.11513.",
        networks_of_adagrad,
    ),
    (
        "MOFFTR on levels of depth",
        "gratton2023multilevel/depth.csv",
        "python -m experiments.gratton2023multilevel.depth",
        "A residual network whose coarser levels have half as many blocks each; noise is relative to every component "
        "of a gradient. Work in gradients of the whole network until a loss, medians over the seeds; \u2013 where "
        "most runs miss it. Our reference run of the method of arXiv 2302.07049.",
        depths,
    ),
    (
        "RASPEN and ASPIN against subdomains",
        "dolean2016raspen/counts.csv",
        "python -m experiments.dolean2016raspen.counts",
        "GMRES iterations of all Newton steps until the gradient has fallen by 1e-8; our reference run.",
        raspen,
    ),
    (
        "Nonlinear Schwarz with bounds",
        "kothari2022bounds/counts.csv",
        "python -m experiments.kothari2022bounds.counts",
        "Outer steps until the projected gradient has fallen by 1e-6, 63 x 63 nodes; our reference run of the methods "
        "of arXiv 2211.14780.",
        schwarz_with_bounds,
    ),
    (
        "ASPIN on energies: outer steps",
        "cai2002aspin/counts.csv",
        "python -m experiments.cai2002aspin.counts",
        "Newton steps until the gradient has fallen by 1e-8; Newton's method itself is the row without subdomains. "
        "Our reference run of the method of Cai and Keyes on other problems than theirs.",
        aspin_steps,
    ),
    (
        "ASPIN on energies: GMRES iterations",
        "cai2002aspin/counts.csv",
        "python -m experiments.cai2002aspin.counts",
        "Of all Newton steps of the table before.",
        aspin,
    ),
    (
        "The driven cavity: outer steps",
        "cai2002aspin/cavity.csv",
        "python -m experiments.cai2002aspin.cavity",
        "Newton steps until the residual has fallen by 1e-8, from zero, against subdomains; for newton the linear "
        "Schwarz method with the same subdomains is the preconditioner. Our reference run.",
        cavity,
    ),
    (
        "The driven cavity: GMRES iterations",
        "cai2002aspin/cavity.csv",
        "python -m experiments.cai2002aspin.cavity",
        "Of all Newton steps of the table before.",
        cavity_krylov,
    ),
    (
        "RASPEN in two dimensions: outer steps",
        "dolean2016raspen/plane.csv",
        "python -m experiments.dolean2016raspen.plane",
        "Newton steps, or sweeps of nras, until the residual has fallen by 1e-8; our reference run, our data.",
        plane,
    ),
    (
        "RASPEN in two dimensions: GMRES iterations",
        "dolean2016raspen/plane.csv",
        "python -m experiments.dolean2016raspen.plane",
        "Of all Newton steps of the table before.",
        plane_krylov,
    ),
    (
        "APTS over parameters",
        "cruz2023apts/curves.csv",
        "python -m experiments.cruz2023apts.curves",
        "Test accuracy in per cent after so many iterations on a full batch, medians over the seeds. The last column "
        "has raw values of the authors (arXiv 2312.13677) on the 60,000 training images of MNIST; ours are of other "
        "data (first lines of the file), so that only their order can be compared.",
        lambda: curves("cruz2023apts"),
    ),
    (
        "APTS over data",
        "cruz2025dataparallel/curves.csv",
        "python -m experiments.cruz2025dataparallel.curves",
        "The same for shares of the images: sums of local steps as published (asm) and means (wasm), with local "
        "models of first (o1) and second order (o2); arXiv 2502.05133.",
        lambda: curves("cruz2025dataparallel"),
    ),
    (
        "What ratios of update costs depend on",
        "kopanicakova2024enhancing/ratios.csv",
        "python -m experiments.kopanicakova2024enhancing.ratios",
        "Update cost of L-BFGS (ten pairs) until an error over that of a method, medians over the seeds; \u2013 where "
        "most runs miss the error. Our reference run on what table 3 of arXiv 2306.17648 depends on.",
        ratios,
    ),
    (
        "Window networks",
        "salvado2026fbpinn/windows.csv",
        "python -m experiments.salvado2026fbpinn.windows",
        "Relative errors after equal work, by L-BFGS, by Schwarz over windows with a search along each correction, "
        "and with a minimisation in the space of the corrections. Our reference run of the idea of arXiv 2601.08709.",
        window_networks,
    ),
    (
        "Learn locally, correct globally",
        "ramezani2022llcg/graphs.csv",
        "python -m experiments.ramezani2022llcg.graphs",
        "Losses of the whole graph after 40 rounds of ten local steps, averages alone and with a correction on the "
        "whole graph; whole is Adam with a step per round. Our reference run of the algorithm of arXiv 2111.08202.",
        corrections,
    ),
]
