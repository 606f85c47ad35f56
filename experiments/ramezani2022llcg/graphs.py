"""Learn locally, correct globally: local SGD on parts of a graph without its cut edges, with and without correction.

    python -m experiments.ramezani2022llcg.graphs [--quick] [--graphs sbm] [--parts 2 4 8]
    mpiexec -n 2 python -m mpi4py -m experiments.ramezani2022llcg.graphs

Every part trains on its own nodes and the edges among them, for `local_steps` steps; iterates are averaged ("average");
"correct" then does `corrections` steps on the whole graph, all edges included (the paper's server, which sees
mini-batches of it). "whole" is the same optimiser on the whole graph, one step per round. Losses are those of the whole
graph without dropout: what averaging alone leaves is the error of the cut edges, and it grows with the parts.

The paper's tables (arXiv 2111.08202) are for Reddit, OGB and the like; here are graphs that a laptop has: this is our
reference run of its algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import mldd
from experiments.study import Case, Picture, Study, minimise
from mldd import Objective, Stop
from mldd.loop import State
from mldd.ranks import Communicator
from mldd.solvers import Adam, LocalSgd


@dataclass(frozen=True)
class Config:
    """Graphs, parts and rounds."""

    graphs: tuple[str, ...] = ("cora", "citeseer")
    parts: tuple[int, ...] = (2, 4, 8)
    methods: tuple[str, ...] = ("whole", "average", "correct")
    seeds: tuple[int, ...] = (0, 1, 2)
    local_steps: int = 10
    corrections: int = 1
    rate: float = 0.01
    rounds: int = 40


@dataclass
class CorrectedState(State):
    """States of the local rounds and of the correction."""

    local: Any = field(default_factory=State)
    whole: Any = field(default_factory=State)


@dataclass(frozen=True)
class Corrected:
    """A round of local steps and their average, then steps on the whole loss."""

    local: LocalSgd
    whole: Adam
    steps: int

    def init(self, objective: Objective, x: torch.Tensor) -> CorrectedState:
        """Return the states of both."""
        return CorrectedState(local=self.local.init(objective, x), whole=self.whole.init(objective, x))

    def step(self, objective: Objective, x: torch.Tensor, state: CorrectedState) -> tuple[torch.Tensor, CorrectedState]:
        """Do a round."""
        x, state.local = self.local.step(objective, x, state.local)
        state.local.step += 1
        for _ in range(self.steps):
            x, state.whole = self.whole.step(objective, x, state.whole)
            state.whole.step += 1
        state.status = state.local.status
        return x, state


def cases(config: Config) -> Iterator[Case]:
    """Return graph, method, parts and seed; the whole graph is the row of one part."""
    for graph in config.graphs:
        for method in config.methods:
            for parts in (1,) if method == "whole" else config.parts:
                for seed in config.seeds:
                    yield {"graph": graph, "method": method, "parts": parts, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network."""
    problem = mldd.problem(case["graph"], dropout=0.0, local="restricted", seed=case["seed"], comm=comm)
    solver: Any = Adam(config.rate)
    if case["method"] != "whole":
        own = problem.decomposition(case["parts"], 0, comm)
        local = LocalSgd(own, Adam(config.rate), config.local_steps, memory="keep", comm=comm)
        corrections = config.corrections if case["method"] == "correct" else 0
        solver = Corrected(local, Adam(config.rate), corrections)
    f, x = problem.objective(), problem.initial(case["seed"])
    result = minimise(f, x, solver, stop=Stop(config.rounds), comm=comm)
    end = result.record
    return {
        "rounds": end.step,
        "synchronisations": end.cost.synchronisations,
        "loss_first": result.history.records[0].value,
        "loss": end.value,
        "gradient": end.measure,
        "test": problem.metrics(result.x)["test_accuracy"],
    }


STUDY = Study(
    __file__,
    "own reference run of the algorithm of arXiv 2111.08202, on other graphs",
    Config(),
    Config(graphs=("sbm",), parts=(4,), methods=("average", "correct"), seeds=(0,), rounds=8),
    cases,
    run,
    Picture("parts", "loss", ("method",), ("graph",), "xy", ("parts", "loss of the whole graph")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
