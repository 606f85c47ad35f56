"""Draw the pictures of the manual from subdomains, levels and runs of mldd.

python paper/manual/pictures.py [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from scipy.spatial import Delaunay

from mldd import Stop, minimise
from mldd.algebra import Hierarchy
from mldd.graph import Graph, grow, nested, partition
from mldd.problems.grids import Forchheimer, Obstacle, Quadratic
from mldd.problems.nets import composite_labels
from mldd.solvers import LBFGS, MultilevelAdaGrad, NewtonCG, NonlinearSchwarz, Raspen

# Okabe and Ito's colours, which those who do not see red or green tell apart.
BLUE, ORANGE, GREEN, RED, BLACK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000", "#999999"
SKY = "#56B4E9"
PARTS = (BLUE, ORANGE, GREEN, "#CC79A7")


def subdomains() -> Any:
    """Draw the owners of a grid's unknowns, one subdomain with its overlap, and how often each unknown is updated."""
    problem = Obstacle(n=15)
    decomposition = problem.decomposition(parts=4, overlap=2)
    owner, count, shape = np.zeros(15 * 15), np.zeros(15 * 15), (15, 15)
    for k, subdomain in enumerate(decomposition.subdomains):
        owner[subdomain.indices[subdomain.owned]] = k
        count[subdomain.indices] += 1
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.6, 3.2), layout="constrained")
    left.imshow(owner.reshape(shape), cmap=ListedColormap(PARTS), alpha=0.75, origin="lower")
    rows, columns = np.divmod(decomposition.subdomains[0].indices.numpy(), 15)
    corner, size = (columns.min() - 0.5, rows.min() - 0.5), (np.ptp(columns) + 1, np.ptp(rows) + 1)
    left.add_patch(Rectangle(corner, *size, fill=False, linewidth=2.5, edgecolor=BLACK))
    left.set_title("owners; frame: subdomain 0 with overlap 2", fontsize=9)
    drawn = right.imshow(count.reshape(shape), cmap=pyplot.get_cmap("Greys", 5), vmin=-0.5, vmax=4.5, origin="lower")
    right.set_title("subdomains that update an unknown", fontsize=9)
    figure.colorbar(drawn, ax=right, ticks=[1, 2, 4], shrink=0.85)
    for axes in (left, right):
        axes.set_xticks(range(0, 15, 2))
        axes.set_xlabel("column of the grid")
        axes.set_ylabel("row of the grid")
    return figure


def planar(nodes: int = 400) -> tuple[Graph, np.ndarray]:
    """Return a triangulation of random points in a square, and the points."""
    points = np.random.default_rng(3).random((nodes, 2))
    triangles = Delaunay(points).simplices
    pairs = np.unique(
        np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])), axis=0
    )
    short = pairs[np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) < 0.15]
    return Graph.from_edges(torch.from_numpy(short.T.copy()).long(), nodes), points


def draw_graph(axes: Any, pairs: np.ndarray, points: np.ndarray, **looks: Any) -> None:
    """Draw edges and nodes."""
    axes.add_collection(LineCollection(points[pairs.T], colors=GREY, linewidths=0.5, zorder=1))
    axes.scatter(*points.T, zorder=2, **looks)
    axes.set_aspect("equal")
    axes.set_axis_off()


def contracted(graph: Graph, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return edges between clusters, their centres and their sizes."""
    sizes = np.bincount(labels)
    centres = np.stack([np.bincount(labels, column) / sizes for column in points.T], axis=1)
    pairs = np.unique(labels[graph.edge_index.numpy()], axis=1)
    return pairs[:, pairs[0] != pairs[1]], centres, sizes


def composite() -> Any:
    """Draw the parts of a graph, a part with its overlap, and the composite graph of that part."""
    graph, points = planar()
    part = partition(graph, 4)
    own = (part == 0).numpy()
    wide = grow(graph, torch.from_numpy(own), 2).numpy()
    figure, axes = pyplot.subplots(1, 3, figsize=(7.6, 2.8), layout="constrained")
    colours = np.array(PARTS)[part.numpy()]
    draw_graph(axes[0], graph.edge_index.numpy(), points, c=colours, s=8)
    axes[0].set_title("four parts of a graph", fontsize=9)
    looks = np.where(own, BLUE, np.where(wide, "#56B4E9", "#DDDDDD"))
    draw_graph(axes[1], graph.edge_index.numpy(), points, c=looks, s=8)
    axes[1].set_title("part 0 (dark), overlap 2 (light)", fontsize=9)
    labels = composite_labels(own, nested(graph, [40], within=part)[0].numpy())
    pairs, centres, sizes = contracted(graph, points, labels)
    draw_graph(axes[2], pairs, centres, c=np.where(sizes == 1, BLUE, ORANGE), s=8.0 * sizes)
    axes[2].set_title(f"its composite graph: {len(sizes)} nodes", fontsize=9)
    return figure


def levels() -> Any:
    """Draw a graph and two coarser ones, whose nodes are clusters."""
    graph, points = planar()
    figure, axes = pyplot.subplots(1, 3, figsize=(7.6, 2.8), layout="constrained")
    maps = [np.arange(graph.nodes), *(labels.numpy() for labels in nested(graph, [100, 25], method="matching"))]
    for level, labels in enumerate(maps):
        pairs, centres, sizes = contracted(graph, points, labels)
        draw_graph(axes[level], pairs, centres, c=(BLUE, ORANGE, GREEN)[level], s=8.0 * sizes)
        axes[level].set_title(f"level {level}: {len(sizes)} nodes", fontsize=9)
    return figure


@dataclass(frozen=True, eq=False)
class Traced:
    """An objective that writes down the level at which a gradient is evaluated; all else is the objective's."""

    inner: Any
    level: int
    visits: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """Return what the objective has by this name."""
        return getattr(self.inner, name)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gradient, and write the level down."""
        self.visits.append(self.level)
        return self.inner.gradient(x)


def cycle() -> Any:
    """Draw where gradients are evaluated in steps of ML-ADAGB2, and its convergence for one to four levels."""
    problem, visits = Obstacle(n=63), []
    hierarchy = problem.hierarchy(levels=4)
    traced = Hierarchy(
        tuple(replace(level, objective=Traced(level.objective, k, visits)) for k, level in enumerate(hierarchy))
    )
    solver = MultilevelAdaGrad(traced)
    solver = replace(solver, coarse=replace(solver.coarse, model="nonlinear", steps=3))
    minimise(traced[0].objective, problem.initial(), solver, stop=Stop(max_steps=6))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
    shown = [level for k, level in enumerate(visits) if k == 0 or level != visits[k - 1] or level == 3][:60]
    left.plot(shown, "o-", color=BLUE, markersize=4, linewidth=1)
    left.set_yticks(range(4), [f"{k}: {level.objective.size}" for k, level in enumerate(hierarchy)])
    left.invert_yaxis()
    left.set_xlabel("gradients, in their order")
    left.set_ylabel("level: unknowns")
    for count, colour in zip((1, 2, 3, 4), (BLACK, RED, ORANGE, BLUE), strict=True):
        records: list[Any] = []
        one = MultilevelAdaGrad(problem.hierarchy(levels=count))
        one = replace(one, coarse=replace(one.coarse, model="nonlinear"))
        stop = Stop(max_steps=400, atol=1e-6)
        minimise(problem.objective(), problem.initial(), one, stop=stop, monitors=[records.append])
        right.semilogy(
            [r.cost.work_units for r in records], [r.measure for r in records], color=colour, label=f"{count}"
        )
    right.set_xlim(0, 300)
    right.set_xlabel("work in gradients of the fine grid")
    right.set_ylabel("measure")
    right.legend(title="levels", frameon=False, fontsize=8)
    return figure


def combined() -> Any:
    """Draw what one sweep makes of zero with summed, weighted and restricted corrections, and how sweeps converge."""
    problem = Quadratic(dim=1, n=63)
    f, decomposition = problem.objective(), problem.decomposition(parts=4, overlap=4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    place = np.arange(1, 64) / 64
    exact = minimise(f, problem.initial(), LBFGS(), stop=Stop(max_steps=300, atol=1e-12)).x
    looks = {"asm": (RED, "--", 1.0), "wasm": (GREEN, "-.", 1.0), "ras": (BLUE, "-", 1.0)}
    for name, (colour, dashes, damping) in looks.items():
        solver = NonlinearSchwarz(decomposition, combine=name, damping=damping, local_steps=60, local_rtol=1e-12)
        first = minimise(f, torch.zeros_like(exact), solver, stop=Stop(max_steps=1)).x
        left.plot(place, first, dashes, color=colour, label=name)
        safe, records = replace(solver, damping=0.0), []
        minimise(f, torch.zeros_like(exact), safe, stop=Stop(max_steps=60), monitors=[records.append])
        label = "asm, damped by 1/2" if name == "asm" else name
        right.semilogy([r.step for r in records], [r.measure for r in records], dashes, color=colour, label=label)
    for subdomain in decomposition.subdomains:
        covered = place[subdomain.indices.numpy()]
        left.axvspan(covered.min(), covered.max(), color=GREY, alpha=0.18, linewidth=0)
    left.set_xlabel("position on the line")
    left.set_ylabel("x after one sweep from 0")
    left.legend(frameon=False, fontsize=8, loc="upper center")
    right.set_xlabel("sweeps")
    right.set_ylabel("measure")
    right.legend(frameon=False, fontsize=8)
    return figure


def scalable() -> Any:
    """Draw sweeps of restricted Schwarz against the number of subdomains, with and without a coarse level."""
    problem = Quadratic(dim=2, n=63)
    f, stop, counts = problem.objective(), Stop(max_steps=1500, rtol=1e-4), (4, 16, 64)
    figure, axes = pyplot.subplots(figsize=(4.4, 2.9), layout="constrained")
    for name, colour, marker in (("one level", RED, "s"), ("with a coarse grid", BLUE, "o")):
        steps = []
        for parts in counts:
            hierarchy = problem.coarse_hierarchy(levels=2, parts=parts) if name != "one level" else None
            solver = NonlinearSchwarz(problem.decomposition(parts, 2), hierarchy, local_steps=30, local_rtol=1e-3)
            steps.append(minimise(f, problem.initial(), solver, stop=stop).record.step)
        axes.loglog(counts, steps, marker + "-", color=colour, label=name)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("subdomains")
    axes.set_ylabel("sweeps until 1e-4 of the start")
    axes.legend(frameon=False, fontsize=8)
    return figure


def coarse_space() -> Any:
    """Draw the error that sweeps leave on a line, without and with a coarse space of hats at the interfaces."""
    problem = Forchheimer(n=119)
    f, place = problem.objective(), 1.5 * np.arange(1, 120) / 120
    decomposition, exact = problem.decomposition(parts=6, overlap=3), problem.solution()
    wave = torch.sin(torch.arange(1, 120, dtype=torch.float64) * 40 * torch.pi / 120)
    start = 0.2 * wave  # from zero, the error is smooth; this adds one that is not
    figure, axes = pyplot.subplots(1, 3, figsize=(8.4, 2.9), layout="constrained")
    axes[0].sharey(axes[1])
    coarse = problem.coarse_hierarchy(2, 6)
    for ax, hierarchy, title in ((axes[0], None, "one level"), (axes[1], coarse, "two levels")):
        solver = NonlinearSchwarz(decomposition, hierarchy, local_steps=30, local_rtol=1e-10, globalisation="none")
        for sweeps, colour, dashes in ((0, GREY, "-"), (1, RED, "--"), (4, BLUE, "-"), (16, GREEN, "-.")):
            x = minimise(f, start.clone(), solver, stop=Stop(max_steps=sweeps)).x if sweeps else start
            ax.plot(place, x - exact, dashes, color=colour, label=f"sweeps: {sweeps}")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("position on the line")
    transfer = coarse[1].transfer
    for k, row in enumerate(torch.eye(transfer.shape[1], dtype=torch.float64)):
        axes[2].plot(place, transfer.prolong(row), color=(BLUE, RED, GREEN)[k % 3])
    axes[2].set_title("the coarse space", fontsize=9)
    axes[2].set_xlabel("position on the line")
    axes[2].set_ylabel("value of a function")
    axes[0].set_ylabel("error of u")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def preconditioned() -> Any:
    """Draw how Newton's method, RASPEN and its fixed-point iteration converge, and what RASPEN asks of GMRES."""
    problem = Forchheimer(n=149)
    f, stop = problem.objective(), Stop(max_steps=40, rtol=1e-9, norm=2.0)
    local, parts = NewtonCG(rtol=1e-10), problem.decomposition(5, 3)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    runs = (
        ("Newton", NewtonCG(dense=150), GREY, "o"),
        ("sweeps", NonlinearSchwarz(parts, local=local, local_steps=50, globalisation="none"), SKY, "s"),
        ("RASPEN", Raspen(parts, local=local, globalisation="line-search"), BLUE, "^"),
    )
    for name, solver, colour, marker in runs:
        records: list[Any] = []
        minimise(f, problem.initial(), solver, stop=stop, monitors=[records.append])
        shown = [r for r in records if r.step <= 14]
        left.semilogy([r.step for r in shown], [r.measure for r in shown], marker + "-", color=colour, label=name)
    counts = (2, 5, 10, 15)
    for name, two, look in (("one level", False, "s-"), ("with hats", True, "o--")):
        found = []
        for count in counts:
            hierarchy = problem.coarse_hierarchy(2, count) if two else None
            solver = Raspen(problem.decomposition(count, 3), hierarchy, local=local, globalisation="line-search")
            result = minimise(f, problem.initial(), solver, stop=stop)
            found.append(result.state.krylov / result.record.step)
        right.plot(counts, found, look, color=BLUE, label=name)
    left.set_xlabel("outer iterations")
    left.set_ylabel("2-norm of the gradient")
    right.set_xlabel("subdomains")
    right.set_ylabel("GMRES iterations per Newton step")
    right.set_xticks(counts)
    left.set_xticks(range(0, 15, 2))
    left.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.45, 0.45))
    right.legend(frameon=False, fontsize=8)
    return figure


PICTURES: tuple[Callable[[], Any], ...] = (
    subdomains,
    composite,
    levels,
    cycle,
    combined,
    scalable,
    coarse_space,
    preconditioned,
)


def main(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        figure = draw()
        figure.savefig(folder / f"{draw.__name__}.png", dpi=120)
        pyplot.close(figure)
        print(folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "pictures")
