"""Networks of a user's own: accuracy, time and synchronisations beside a plain loop of torch_geometric.

    python experiments/benchmarks/user_networks.py [--graphs small cora large] [--nets ...] [--epochs 60] [--out FILE]
    mpiexec -n 2 python -m mpi4py experiments/benchmarks/user_networks.py [...]

The plain loop is the usual one (train mode, cross-entropy on the training nodes, backward, torch.optim.Adam), the other
is `mldd.train(net, data, solver="adam")` with the same start, rate and number of epochs; both full batch, float32. Rows
have means and deviations of the test accuracy over the seeds, and the median time of an epoch over that of the loop, in
the same run and with the same threads; on several ranks the loop runs on the first one alone. Of networks with batch
normalisation (gatv2, pna) the loop's running averages lag behind after few epochs, and those of mldd fit the last
parameters: accuracies differ for that reason. ``gcn`` is a model of
torch_geometric that the built-in layers evaluate, ``gcn, own calls`` the same one by its own calls. With ``--methods``
other solvers follow, with the synchronisations and the work until the best validation accuracy of Adam is reached (it
is looked at after every step), and those of Adam. A graph is also the name of a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GATv2Conv, MessagePassing, PNAConv, TransformerConv
from torch_geometric.nn.models import GCN

import mldd
from mldd.loop import replacing
from mldd.problems.data import graph_fields
from mldd.ranks import prepare, world

RATE = 0.01


class Attention(nn.Module):
    """Two layers of GATv2 with attributes of edges, batch normalisation and dropout."""

    def __init__(self, inputs: int, classes: int, edges: int | None) -> None:
        super().__init__()
        self.first = GATv2Conv(inputs, 8, heads=4, edge_dim=edges)
        self.norm = nn.BatchNorm1d(32)
        self.last = GATv2Conv(32, classes, edge_dim=edges)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Return the outputs at the nodes."""
        x = functional.elu(self.norm(self.first(x, edge_index, edge_attr)))
        made: Tensor = self.last(functional.dropout(x, 0.5, self.training), edge_index, edge_attr)
        return made


class Transformer(nn.Module):
    """Three transformer layers."""

    def __init__(self, inputs: int, classes: int, edges: int | None) -> None:
        super().__init__()
        widths = [inputs, 32, 32, classes]
        self.layers = nn.ModuleList(
            [TransformerConv(a, b, edge_dim=edges) for a, b in zip(widths, widths[1:], strict=False)]
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Return the outputs at the nodes."""
        for layer in self.layers[:-1]:
            x = functional.dropout(layer(x, edge_index, edge_attr).relu(), 0.3, self.training)
        made: Tensor = self.layers[-1](x, edge_index, edge_attr)
        return made


class Principal(nn.Module):
    """Two PNA layers with batch normalisation behind a linear one, as messages are as wide as what comes in."""

    def __init__(self, inputs: int, classes: int, edges: int | None) -> None:
        super().__init__()
        degrees = torch.tensor([1, 10, 100, 200, 300, 200, 100, 50, 20, 10])
        options = (["mean", "max", "std"], ["identity", "amplification"], degrees)
        self.enter = nn.Linear(inputs, 16)
        self.first, self.norm = PNAConv(16, 16, *options), nn.BatchNorm1d(16)
        self.last = PNAConv(16, classes, *options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the outputs at the nodes."""
        x = self.first(self.enter(x).relu(), edge_index)
        made: Tensor = self.last(self.norm(x).relu(), edge_index)
        return made


class ByHand(MessagePassing):
    """A layer written by hand, twice."""

    def __init__(self, inputs: int, classes: int, edges: int | None) -> None:
        super().__init__(aggr="mean")
        self.first, self.second = nn.Linear(inputs, 32), nn.Linear(64, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the outputs at the nodes."""
        x = self.first(x).relu()
        x = torch.cat([x, self.propagate(edge_index, x=x)], 1)
        x = functional.dropout(x, 0.3, self.training)
        made: Tensor = self.second(self.propagate(edge_index, x=x) + x)
        return made


class OwnCalls(GCN):
    """A derived class may do something else, so that the built-in layers do not evaluate it."""


NETS: dict[str, Callable[[int, int, int | None], nn.Module]] = {
    "gatv2": Attention,
    "transformer": Transformer,
    "pna": Principal,
    "gcn": lambda inputs, classes, edges: GCN(inputs, 32, 2, classes, dropout=0.5),
    "gcn, own calls": lambda inputs, classes, edges: OwnCalls(inputs, 32, 2, classes, dropout=0.5),
    "by hand": ByHand,
}


def small(nodes: int = 600, classes: int = 4) -> dict[str, Tensor]:
    """Return a directed graph with attributes of edges, whose classes features and neighbours tell."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (nodes,), generator=random)
    x = 0.7 * functional.one_hot(y, 12).float() + torch.randn(nodes, 12, generator=random)
    return blocks(x, y, 4000, random)


def large(nodes: int = 200_000, classes: int = 8) -> dict[str, Tensor]:
    """Return a graph of many nodes that are numbered along a line, each with neighbours nearby."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(nodes) * 64 // nodes % classes
    x = 0.3 * functional.one_hot(y, 16).float() + torch.randn(nodes, 16, generator=random)
    ends = torch.arange(nodes)[:, None] + torch.randint(1, 40, (nodes, 3), generator=random)
    edges = torch.stack([torch.arange(nodes)[:, None].expand(-1, 3), ends % nodes]).flatten(1)
    return split(x, y, torch.cat([edges, edges.flip(0)], 1), random)


def blocks(x: Tensor, y: Tensor, count: int, random: torch.Generator) -> dict[str, Tensor]:
    """Return a graph whose edges mostly stay within a class."""
    n = len(y)
    source = torch.randint(0, n, (count,), generator=random)
    order, size = torch.argsort(y, stable=True), torch.bincount(y)
    first = size.cumsum(0) - size
    same = first[y[source]] + (torch.rand(count, generator=random) * size[y[source]]).long()
    target = torch.where(
        torch.rand(count, generator=random) < 0.8, order[same], torch.randint(0, n, (count,), generator=random)
    )
    edges = torch.stack([source, target])[:, source != target]
    made = split(x, y, edges, random)
    return made | {"edge_attr": torch.rand(edges.shape[1], 3, generator=random)}


def split(x: Tensor, y: Tensor, edges: Tensor, random: torch.Generator) -> dict[str, Tensor]:
    """Return fields of a graph with masks: a fifth for training, three tenths for validation."""
    part = torch.rand(len(y), generator=random)
    masks = {"train_mask": part < 0.2, "val_mask": (part >= 0.2) & (part < 0.5), "test_mask": part >= 0.5}
    return {"x": x, "edge_index": edges, "y": y, **masks}


def cora() -> dict[str, Tensor]:
    """Return Cora."""
    fields = graph_fields("cora")
    return fields | {"x": fields["x"].float()}


GRAPHS = {"small": small, "cora": cora, "large": large}


def graph(name: str) -> dict[str, Any]:
    """Return a graph by name, or that of a file."""
    return GRAPHS[name]() if name in GRAPHS else graph_fields(name)


def made(net: str, data: dict[str, Tensor], seed: int) -> nn.Module:
    """Return a network with the start of a seed."""
    torch.manual_seed(seed)
    edges = data["edge_attr"].shape[1] if "edge_attr" in data else None
    return NETS[net](data["x"].shape[1], int(data["y"].max()) + 1, edges)


def plain(net: nn.Module, data: dict[str, Tensor], epochs: int) -> dict[str, Any]:
    """Train by a loop as anybody writes it."""
    names = mldd.problem(_kind(), net=net, data=data).arguments.names
    values = {name: data[name] for name in names}
    optimizer, seconds = torch.optim.Adam(net.parameters(), lr=RATE), []
    for _ in range(epochs):
        begin = time.perf_counter()
        net.train()
        optimizer.zero_grad()
        out = net(**values)
        functional.cross_entropy(out[data["train_mask"]], data["y"][data["train_mask"]]).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    net.eval()
    with torch.no_grad():
        right = (net(**values).argmax(1) == data["y"]).double()
    return {"test": float(right[data["test_mask"]].mean()), "epoch": statistics.median(seconds)}


def _kind() -> type[Any]:
    from mldd.problems import GraphProblem

    return GraphProblem


def ours(net: nn.Module, data: dict[str, Tensor], solver: str, steps: int, seed: int, **more: Any) -> dict[str, Any]:
    """Train by mldd on all ranks."""
    validated = more.pop("validated", False)
    options = {"validate_every": 1} if validated else {}
    run = mldd.train(net, data, solver=solver, steps=steps, seed=seed, options=options, **more)
    records = run.history.records
    seconds = [b.cost.seconds - a.cost.seconds for a, b in zip(records, records[1:], strict=False)]
    return {
        "test": run.metrics["test_accuracy"],
        "curve": [(r.validation["validation_accuracy"], r.cost) for r in records if r.validation] if validated else [],
        "notes": run.problem.details().get("notes", []),
        "epoch": statistics.median(seconds),
    }


def reached(runs: list[dict[str, Any]], targets: list[float]) -> dict[str, Any]:
    """Return what the first iterates have cost that validate as well as the targets, one per run; None: not all do."""
    firsts = [
        next((cost for accuracy, cost in run["curve"] if accuracy >= target), None)
        for run, target in zip(runs, targets, strict=True)
    ]
    found = [cost for cost in firsts if cost is not None]
    return {
        "best_validation": statistics.median(max(accuracy for accuracy, _ in run["curve"]) for run in runs),
        "reached_in": f"{len(found)} of {len(runs)} runs",
        "synchronisations": statistics.median([c.synchronisations for c in found]) if found else None,
        "work": statistics.median([c.work_units for c in found]) if found else None,
    }


def row(name: str, net: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare both on some seeds."""
    data, comm = graph(name), world()
    seeds = range(options.seeds)
    validated = bool(options.methods)

    def run(solver: str, steps: int, seed: int, **more: Any) -> dict[str, Any]:
        return ours(made(net, data, seed), data, solver, steps, seed, validated=validated, **more)

    adam, loops = [], []
    for seed in seeds:  # in turns, so that other load meets both alike
        adam.append(run(f"adam:lr={RATE}", options.epochs, seed))
        loops += [plain(made(net, data, seed), data, options.epochs)] if comm.rank == 0 else []
    found: dict[str, Any] = {"graph": Path(name).stem, "net": net, "ranks": comm.ranks, "epochs": options.epochs}
    for key, rows in (("mldd", adam), ("loop", loops)):
        tests = [one["test"] for one in rows] or [0.0]
        spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
        found |= {f"{key}_test": statistics.mean(tests), f"{key}_deviation": spread}
        found |= {f"{key}_epoch": statistics.median([one["epoch"] for one in rows] or [0.0])}
    found["notes"] = adam[0]["notes"]
    if validated:
        targets = [max(accuracy for accuracy, _ in one["curve"]) for one in adam]
        found["to_the_best_validation_of_adam"] = {f"adam, {options.epochs} epochs": reached(adam, targets)}
        for method in options.methods:
            solver, *words = method.split()
            more = {key: int(value) for key, value in (word.split("=") for word in words)}
            steps = more.pop("steps", 20)
            given = [run(solver, steps, seed, **more) for seed in seeds]
            found["to_the_best_validation_of_adam"][method] = reached(given, targets)
    return found


def keep(one: dict[str, Any], out: Path) -> None:
    """Write a row into a file, in the place of an older one of the same graph, network and number of ranks."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    key = ("graph", "net", "ranks")
    new = {tuple(r[k] for k in key): r for r in [*old, one]}
    with replacing(out) as to:
        to.write_text(json.dumps(list(new.values()), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Print a row per graph and network, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), help=f"{', '.join(GRAPHS)}, or files")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=[], help="as in 'ml-lbfgs levels=2 steps=20'")
    parser.add_argument("--out", type=Path, default=Path("paper/results/user_networks.json"))
    options = parser.parse_args()
    comm = world()
    prepare(comm)
    if comm.rank == 0:
        print(
            f"{'graph':<9}{'net':<16}{'ranks':<6}{'test, loop':<18}{'test, mldd':<18}{'epoch ms':<10}{'mldd':<10}ratio"
        )
    for name in options.graphs:
        for net in options.nets:
            one = row(name, net, options)
            if comm.rank == 0:
                keep(one, options.out)
                tests = [f"{one[f'{k}_test']:.4f} ± {one[f'{k}_deviation']:.4f}" for k in ("loop", "mldd")]
                times = [1e3 * one[f"{k}_epoch"] for k in ("loop", "mldd")]
                print(
                    f"{one['graph']:<9}{net:<16}{comm.ranks:<6}{tests[0]:<18}{tests[1]:<18}{times[0]:<10.2f}{times[1]:<10.2f}"
                    f"{times[1] / times[0]:.2f}",
                    *(f"\n  {m}: {cost}" for m, cost in one.get("to_the_best_validation_of_adam", {}).items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
