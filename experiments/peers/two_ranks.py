"""Runs of peers from their own checkouts on two ranks of torch.distributed, and what they are counted by."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from experiments.peers.race import Mark, Race

ROOT = Path(__file__).parents[2]


def run_peer(race: Race, module: str, data: dict[str, Any]) -> None:
    """Run ``python -m MODULE FOLDER RANK`` on two ranks, and take over the marks that they write.

    Parameters
    ----------
    race : Race
        The start and the budget; a peer that begins at another number is refused.
    module : str
        Calls `peer_main`.
    data : dict
        What it gets: tensors, numbers and text.
    """
    race.begin()
    budget = race.task.budget
    data |= {"seconds": budget.seconds, "gradients": budget.gradients, "goal": race.task.targets[-1]}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(data, Path(folder) / "data")
        command = [sys.executable, "-m", module, folder]
        ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit(f"{data['name']} failed; its last lines are above")
        found = json.loads((Path(folder) / "marks.json").read_text(encoding="utf-8"))
    race.marks, race.setup = [Mark(**mark) for mark in found["marks"]], found["setup"]
    expected = race.task.number(race.problem)(race.problem.initial(race.seed))
    if not math.isclose(race.marks[0].number, expected, rel_tol=1e-3):
        raise SystemExit(f"{data['name']} must start at {expected}, got {race.marks[0].number}")


class Counter:
    """How many gradients a rank has evaluated, and how many sums over ranks of vectors and of numbers."""

    def __init__(self) -> None:
        self.gradients = self.vectors = self.scalars = 0
        self._backward, self._sum, self._gather = torch.Tensor.backward, dist.all_reduce, dist.all_gather
        counter = self

        def backward(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            counter.gradients += 1
            return counter._backward(tensor, *args, **options)  # type: ignore[no-untyped-call]

        torch.Tensor.backward = backward  # type: ignore[method-assign, assignment]
        dist.all_reduce = self.sum
        dist.all_gather = self.gather

    def sum(self, tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Count a sum over ranks."""
        if tensor.numel() > 8:
            self.vectors += 1
        else:
            self.scalars += 1
        return self._sum(tensor, *args, **options)

    def gather(self, into: Any, tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Count a gathering of vectors."""
        self.vectors += 1
        return self._gather(into, tensor, *args, **options)

    def total(self, *numbers: float) -> list[float]:
        """Return sums over ranks that are not counted."""
        both = torch.tensor(numbers, dtype=torch.float64)
        self._sum(both)
        found: list[float] = both.tolist()
        return found


def peer_main(prepared: Callable[[dict[str, Any], int], Any]) -> None:
    """Be one of the ranks: run until the goal or the end of the budget, and write the marks.

    Parameters
    ----------
    prepared : callable
        ``prepared(data, rank)`` returns what one step does, the rank's share of the number (they are summed), and what
        a gradient of a rank is worth in those of the whole problem. It is called twice: imports are no set-up.
    """
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    data = torch.load(folder / "data", weights_only=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    prepared(data, rank)
    begin = time.process_time()
    step, number, worth = prepared(data, rank)
    setup, counter = time.process_time() - begin, Counter()
    marks: list[dict[str, float]] = []
    cpu = seconds = 0.0
    while True:
        before = counter.gradients
        of_all = counter.total(number(), cpu, worth * before)
        counter.gradients = before
        mark = dict(zip(("number", "cpu", "gradients"), of_all, strict=True))
        marks.append(mark | {"seconds": seconds, "vectors": counter.vectors, "scalars": counter.scalars})
        over = mark["number"] <= data["goal"] or mark["cpu"] >= data["seconds"]
        if over or mark["gradients"] >= data["gradients"] or not math.isfinite(mark["number"]):
            break
        dist.barrier()
        times = time.process_time(), time.perf_counter()
        step()
        cpu += time.process_time() - times[0]
        seconds += time.perf_counter() - times[1]
    (of_both,) = counter.total(setup)
    if rank == 0:
        (folder / "marks.json").write_text(json.dumps({"marks": marks, "setup": of_both}), encoding="utf-8")
    dist.destroy_process_group()
