"""ASPQN and MSPQN against L-BFGS and Adam on physics-informed networks: table 3 of arXiv 2306.17648, as ratios.

    python -m experiments.kopanicakova2024enhancing.pinns [--quick] [--problems burgers] [--work 20000]
    mpiexec -n 2 python -m mpi4py -m experiments.kopanicakova2024enhancing.pinns

Networks, points, subdomains (one layer each), local steps and rates of Adam are those of table 1 of the paper; "kept"
are ASPQN and MSPQN with 20 local steps whose curvature pairs are kept from one outer step to the next. float64; error
``|u - u*| / |u|`` as in the paper, on a regular grid. Every method gets the same work: gradients of the whole network,
a local gradient being worth its share of the parameters, all subdomains together (what one thread has to do).

"update cost" is the paper's, in gradients of the whole network per device: those that were evaluated on the whole, plus
``k_s / N_sd`` per outer step for ASPQN (a device per subdomain) and ``k_s`` for MSPQN (one device for all). "ratio" is
the update cost of L-BFGS over that of a method to the same error, the least that both have reached; "paper" is the
ratio of minutes to the error "paper_target" there. Third-party notes are the source of both tables; this is our
reference run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from experiments.study import Case, Study, minimise
from mldd import Stop
from mldd.algebra import uncounted
from mldd.loop import Status
from mldd.problems import PhysicsInformed
from mldd.ranks import Communicator
from mldd.solvers import LBFGS, Adam, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS

# Ratios of the minutes that L-BFGS took and ASPQN (a GPU per subdomain), MSPQN (one GPU) took, and the target error.
PAPER = {
    "burgers": {"aspqn": 38.8, "mspqn": 13.7, "target": 4.6e-4},
    "klein-gordon": {"aspqn": 34.8, "mspqn": 8.8, "target": 6.1e-4},
    "allen-cahn": {"aspqn": 12.6, "mspqn": 8.5, "target": 6.0e-4},
}
PUBLISHED: dict[str, Any] = {"outer": LBFGS(3, momentum=0.9), "local": BatchLBFGS(10), "keep_pairs": False}
KEPT: dict[str, Any] = {"outer": LBFGS(10), "local": BatchLBFGS(50), "keep_pairs": True, "local_steps": 20}
_BASELINES: dict[Any, Any] = {}  # runs of L-BFGS by configuration, problem and seed


@dataclass(frozen=True)
class Config:
    """Problems, methods and the work that each may do."""

    problems: tuple[str, ...] = ("burgers", "klein-gordon", "allen-cahn", "diffusion-advection")
    methods: tuple[str, ...] = ("aspqn", "mspqn", "aspqn kept", "mspqn kept", "adam")
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 10000
    work: float = 20000.0
    looks: int = 200


@dataclass(frozen=True)
class Setting:
    """What may differ from table 1; 0 is the table's value."""

    method: str
    local_steps: int = 0
    parts: int = 0

    def options(self, problem: PhysicsInformed) -> dict[str, Any]:
        """Return what is set of `SchwarzLBFGS`."""
        options = {"local_steps": problem.preset.local_steps} | (KEPT if "kept" in self.method else PUBLISHED)
        return options | ({"local_steps": self.local_steps} if self.local_steps else {})

    def solver(self, problem: PhysicsInformed, comm: Communicator) -> Any:
        """Return the method."""
        if self.method == "adam":
            return Adam(problem.preset.rate)
        if "lbfgs" in self.method:
            return LBFGS(*map(int, self.method.split()[1:]))
        order: Any = "additive" if "aspqn" in self.method else "multiplicative"
        subdomains = problem.decomposition(self.parts or problem.net.layers, 0)
        return SchwarzLBFGS(subdomains, order, comm=comm, **self.options(problem))

    def update_cost(self, problem: PhysicsInformed, gradients: int, steps: int) -> float:
        """Return the paper's update cost of a device, in gradients of the whole network."""
        if "spqn" not in self.method:
            return gradients
        devices = (self.parts or problem.net.layers) if "aspqn" in self.method else 1
        return gradients + steps * self.options(problem)["local_steps"] / devices


@dataclass
class Curve:
    """Error and cost of a run; ends it when its work is done."""

    problem: PhysicsInformed
    setting: Setting
    most: float
    looks: int
    rows: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, state: Any, history: Any) -> None:
        """Take note of a step."""
        cost, step = history.records[-1].cost, history.records[-1].step
        over = cost.work_total >= self.most
        if over or not self.rows or cost.work_total >= self.rows[-1]["work"] + self.most / self.looks:
            with uncounted():
                error = self.problem.metrics(x)["relative_l2_paper"]
                loss = float(self.problem.objective().value(x))
            price = self.setting.update_cost(self.problem, cost.gradient_evaluations, step)
            self.rows.append(
                {"steps": step, "update_cost": price, "work": cost.work_total, "loss": loss, "error": error}
            )
        if over:
            state.status = Status.max_steps

    @property
    def least(self) -> float:
        """The least error."""
        return min(row["error"] for row in self.rows)

    def at(self, target: float) -> float:
        """Return the update cost at which the error was at `target` for the first time, NaN if never."""
        return next((row["update_cost"] for row in self.rows if row["error"] <= target), math.nan)


def curve_of(config: Any, name: str, setting: Setting, seed: int, comm: Communicator) -> Curve:
    """Run one method on one problem."""
    problem = PhysicsInformed(name, points=config.points, comm=comm)
    curve = Curve(problem, setting, config.work, config.looks)
    f, x = problem.objective(), problem.initial(seed)
    minimise(f, x, setting.solver(problem, comm), stop=Stop(10**9), after_step=curve, comm=comm)
    return curve


def baseline(config: Any, name: str, seed: int, comm: Communicator) -> Curve:
    """Return the run of L-BFGS, which is done once."""
    key = (config, name, seed)
    if key not in _BASELINES:
        _BASELINES[key] = curve_of(config, name, Setting("lbfgs"), seed, comm)
    return _BASELINES[key]


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method and seed."""
    for problem in config.problems:
        for method in config.methods:
            for seed in config.seeds:
                yield {"problem": problem, "method": method, "seed": seed}


def compared(base: Curve, curve: Curve) -> Case:
    """Return what a method has reached, and its update cost beside that of L-BFGS."""
    target = max(base.least, curve.least)
    return {
        "steps": int(curve.rows[-1]["steps"]),
        "update_cost": curve.rows[-1]["update_cost"],
        "loss": curve.rows[-1]["loss"],
        "error": curve.least,
        "lbfgs_loss": base.rows[-1]["loss"],
        "lbfgs_error": base.least,
        "target": target,
        "ratio": base.at(target) / curve.at(target),
    }


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method beside L-BFGS."""
    base = baseline(config, case["problem"], case["seed"], comm)
    curve = curve_of(config, case["problem"], Setting(case["method"]), case["seed"], comm)
    paper = PAPER.get(case["problem"], {})
    ratio, target = paper.get(case["method"][:5], math.nan), paper.get("target", math.nan)
    return compared(base, curve) | {"paper": ratio, "paper_target": target}


STUDY = Study(
    __file__,
    "third-party notes on tables 1 and 3 of arXiv 2306.17648; ours is a reference run in a fixed budget",
    Config(),
    Config(problems=("klein-gordon",), methods=("aspqn kept",), seeds=(0,), points=50, work=30.0, looks=2),
    cases,
    run,
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
