"""The tables of the experiments that follow papers, for results.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tables import Row, median_of, read, table


def cells(rows: Sequence[Row], name: str) -> str:
    """Return the median of a column, with a > where a run has not reached its end; nothing where there are none."""
    if not rows:
        return ""
    reached = all(row["status"].startswith(("converged", "target")) for row in rows)
    return ("" if reached else "> ") + f"{median_of(rows, name):g}"


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
    return across("gratton2025recursive/levels.csv", ("problem", "curvature"), "levels", "steps")


def subdomains_of_adagrad() -> str:
    """Return the steps of DD-ADAGB2 on four to 64 subdomains."""
    return across("gratton2025recursive/subdomains.csv", ("problem", "levels", "combine"), "parts", "steps")


def noise_of_adagrad() -> str:
    """Return the steps of ADAGB2 with inexact gradients."""
    return across("gratton2025recursive/noise.csv", ("problem", "levels"), "noise", "steps")


def raspen() -> str:
    """Return the GMRES iterations of RASPEN and ASPIN."""
    return across("dolean2016raspen/counts.csv", ("problem", "method", "overlap"), "parts", "krylov", without="nras")


def schwarz_with_bounds() -> str:
    """Return the steps of nonlinear Schwarz with bounds."""
    return across("kothari2022bounds/counts.csv", ("problem", "method"), "parts", "steps")


def cavity() -> str:
    """Return the outer steps on the driven cavity."""
    return across("cai2002aspin/cavity.csv", ("reynolds", "method", "levels", "overlap"), "parts", "steps")


def cavity_krylov() -> str:
    """Return the GMRES iterations on the driven cavity."""
    return across("cai2002aspin/cavity.csv", ("reynolds", "method", "levels", "overlap"), "parts", "krylov")


def plane() -> str:
    """Return the outer steps in two dimensions."""
    return across("dolean2016raspen/plane.csv", ("problem", "method", "levels", "overlap"), "parts", "steps")


def plane_krylov() -> str:
    """Return the GMRES iterations in two dimensions."""
    return across("dolean2016raspen/plane.csv", ("problem", "method", "levels", "overlap"), "parts", "krylov", "nras")


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
        "The same for Schwarz methods on one and two levels, with two layers of nodes around every subdomain.",
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
        "Outer steps until the projected gradient has fallen by 1e-6, 31 x 31 nodes; our reference run of the methods "
        "of arXiv 2211.14780.",
        schwarz_with_bounds,
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
]
