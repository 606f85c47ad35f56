"""What a ratio of update costs to L-BFGS refers to: the error level, the price of a local gradient, the memory.

    python -m experiments.kopanicakova2024enhancing.ratios [--quick] [--problems klein-gordon] [--work 3000]

Table 3 of arXiv 2306.17648 has ratios of minutes at errors of 5e-4. They can differ from ours by four things, each of
which is a column or a row here: at which *error* the ratio is taken; what a *local gradient* costs its device, the
share n_s / n of the parameters as in the paper's update cost ("share"), or a whole gradient ("device"), since values
and derivatives go through all layers and only products with the frozen weights' gradients are saved; how many pairs
*L-BFGS*, the baseline, keeps (3, as the outer method of the paper, or our 10); and whether *local pairs* are kept.

Every method may do the same work; each row is the first time at which a run is at a target. "ratio_..." are those of
"lbfgs 3" and "lbfgs 10" at the same target and seed, NaN where one of both is never there. Points and work are far
below those of the paper, and so are the errors that can be reached: this is our reference run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.kopanicakova2024enhancing.pinns import Curve, Setting, curve_of
from experiments.study import Case, Picture, Study
from mldd.ranks import Communicator

_CURVES: dict[tuple[object, ...], Curve] = {}  # a run serves all targets


@dataclass(frozen=True)
class Config:
    """Problems, methods, targets, and the work that each run may do."""

    problems: tuple[str, ...] = ("klein-gordon", "allen-cahn")
    methods: tuple[str, ...] = ("lbfgs 3", "lbfgs 10", "aspqn", "mspqn", "aspqn kept", "mspqn kept")
    targets: tuple[float, ...] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 1000
    work: float = 6000.0
    looks: int = 100


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, seed and target."""
    for problem in config.problems:
        for seed in config.seeds:
            for method in config.methods:
                for target in config.targets:
                    yield {"problem": problem, "seed": seed, "method": method, "target": target}


def once(config: Config, problem: str, method: str, seed: int, comm: Communicator) -> Curve:
    """Return the run of a method, which is done once."""
    key = (config, problem, method, seed)
    if key not in _CURVES:
        _CURVES[key] = curve_of(config, problem, Setting(method), seed, comm)
    return _CURVES[key]


def prices(curve: Curve, target: float) -> Case:
    """Return steps, and both costs of a device, at the first time at `target`; NaN if never."""
    row = next((row for row in curve.rows if row["error"] <= target), None)
    if row is None:
        return {"steps": math.nan, "share": math.nan, "device": math.nan}
    share, device = row["update_cost"], row["update_cost"]
    if "spqn" in curve.setting.method:
        local = curve.setting.options(curve.problem)["local_steps"] * row["steps"]
        layers = curve.problem.net.layers
        # The paper's price of one local gradient is a share, N of which are counted for MSPQN and one for ASPQN.
        device += local * (1.0 - 1.0 / layers) if "aspqn" in curve.setting.method else local * (layers - 1)
    return {"steps": row["steps"], "share": share, "device": device}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Compare one method at one target with L-BFGS."""
    curve = once(config, case["problem"], case["method"], case["seed"], comm)
    found = prices(curve, case["target"])
    ratios = {}
    for memory, ending in ((3, "_3"), (10, "")):
        base = prices(once(config, case["problem"], f"lbfgs {memory}", case["seed"], comm), case["target"])
        ratios |= {f"ratio_{price}{ending}": base["share"] / found[price] for price in ("share", "device")}
    return found | ratios | {"least": curve.least}


STUDY = Study(
    __file__,
    "own reference run: what table 3 of arXiv 2306.17648 (third-party notes) depends on",
    Config(),
    Config(
        problems=("klein-gordon",),
        methods=("lbfgs 10", "aspqn"),
        targets=(0.9,),
        seeds=(0,),
        points=50,
        work=60.0,
        looks=4,
    ),
    cases,
    run,
    Picture("target", "ratio_share", ("method",), ("problem",), "xy", ("error", "update cost of L-BFGS over it")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
