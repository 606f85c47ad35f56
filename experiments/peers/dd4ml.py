"""APTS of DD4ML (https://github.com/cruzas/DD4ML) from a checkout of it, on two ranks of torch.distributed.

Its optimiser is imported and given our network, start and halves of the samples; two packages that it imports and does
not need here are stood in for by empty modules. "repaired" adds the first-order correction to the gradient of the local
model, which it adds to the value alone (fa3027f), and begins the local steps with the gradient of the whole loss.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from experiments.peers.race import Mark, Method, Race

ROOT = Path(__file__).parents[2]
LSSR1: dict[str, Any] = {"kind": "lssr1_tr", "second_order": True, "dogleg": True}
FIRST: dict[str, Any] = {"kind": "tr", "second_order": False, "dogleg": False}
METHODS: dict[str, dict[str, Any]] = {
    "dd4ml, first order, shipped": FIRST | {"repair": False},
    "dd4ml, first order, repaired": FIRST | {"repair": True},
    "dd4ml, sr1, shipped": LSSR1 | {"repair": False},
    "dd4ml, sr1, repaired": LSSR1 | {"repair": True},
}


def apts_d(folder: Path, name: str) -> Method:
    """Return a method that runs APTS_D in processes of its own."""
    if not (folder / "src" / "dd4ml").is_dir():
        raise SystemExit(f"--dd4ml must be a checkout with src/dd4ml in it, got {folder}")

    def run(race: Race, rate: float) -> None:
        race.task = replace(race.task, need=replace(race.task.need, dtype="float32"))
        race.begin()
        f = race.problem.objective()
        views = [view.float() for view in f.net.layout.views(race.problem.initial(race.seed))]
        data = {"views": views, "inputs": f.inputs.float(), "labels": f.labels, "folder": str(folder), "name": name}
        budget = race.task.budget
        data |= {"seconds": budget.seconds, "gradients": budget.gradients, "goal": race.task.targets[-1]}
        with tempfile.TemporaryDirectory() as temporary:
            torch.save(data, Path(temporary) / "data")
            command = [sys.executable, "-m", "experiments.peers.dd4ml", temporary]
            ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
            if any([rank.wait() for rank in ranks]):
                raise SystemExit(f"{name} failed in {folder}; its last lines are above")
            found = json.loads((Path(temporary) / "marks.json").read_text())
        race.marks, race.setup = [Mark(**mark) for mark in found["marks"]], found["setup"]
        expected = race.task.number(race.problem)(race.problem.initial(race.seed))
        if not math.isclose(race.marks[0].number, expected, rel_tol=1e-4):
            raise SystemExit(f"{name} must start at a loss of {expected}, got {race.marks[0].number}")

    return Method(run)


class Network(torch.nn.Module):
    """The network of the benchmark as DD4ML clones it: made from a configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        out: torch.Tensor = self.layers[-1](x)
        return out


class Config:
    """What DD4ML copies of a network."""

    def __init__(self, widths: list[int]) -> None:
        self.widths, self.model_type = widths, None


class Counter:
    """How many gradients a rank has evaluated, and how many sums over ranks of vectors and of numbers."""

    def __init__(self) -> None:
        self.gradients = self.vectors = self.scalars = 0
        self._backward, self._sum = torch.Tensor.backward, dist.all_reduce
        torch.Tensor.backward = self.backward  # type: ignore[method-assign, assignment]
        dist.all_reduce = self.sum

    @property
    def backward(self) -> Any:
        """What stands in for ``Tensor.backward``."""

        def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            self.gradients += 1
            return self._backward(tensor, *args, **options)  # type: ignore[no-untyped-call]

        return counted

    def sum(self, tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Count a sum over ranks."""
        if tensor.numel() > 8:
            self.vectors += 1
        else:
            self.scalars += 1
        return self._sum(tensor, *args, **options)

    def unseen(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a sum over ranks that is not counted."""
        self._sum(tensor)
        return tensor


def optimiser(model: Network, settings: dict[str, Any]) -> Any:
    """Return APTS_D with the radii, local and global steps of its configuration for MNIST, and a low floor."""
    for name in ("wandb", "torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
        sys.modules.setdefault(name, ModuleType(name))
    resnet = ModuleType("torchvision.models.resnet")
    resnet.resnet18 = resnet.BasicBlock = torch.nn.Identity  # type: ignore[attr-defined]
    sys.modules["torchvision.models.resnet"] = resnet
    sys.modules["torchvision.models"].resnet18 = torch.nn.Identity  # type: ignore[attr-defined]
    for name in ("datasets", "transforms"):
        setattr(sys.modules["torchvision"], name, sys.modules[f"torchvision.{name}"])
    import dd4ml.utility as utility  # type: ignore[import-not-found] # first: the optimisers import it in a circle
    from dd4ml.optimizers.apts_d import APTS_D  # type: ignore[import-not-found]

    class Repaired(APTS_D):  # type: ignore[misc]
        """APTS_D whose local gradients are those of the corrected local loss."""

        corrected = False

        def loc_steps(self, loss: Any, grad: Any) -> Any:
            self.corrected = True
            try:
                return super().loc_steps(loss, self.init_glob_grad)
            finally:
                self.corrected = False

        def foc_loc_closure(self, compute_grad: bool = False) -> Any:
            loss = super().foc_loc_closure(compute_grad)
            if compute_grad and self.corrected:
                at = 0
                for p in self.loc_model.parameters():
                    p.grad += self.resid[at : at + p.numel()].view_as(p)
                    at += p.numel()
            return loss

    config = utility.CfgNode() if hasattr(utility, "CfgNode") else Config([])
    values: dict[str, Any] = {"delta": 0.1, "min_delta": 1e-6, "max_delta": 1.0, "norm_type": 2, "tol": 1e-6}
    values |= {"mem_length": 3, "max_wolfe_iters": 5, "max_zoom_iters": 5, "paper_tr_update": False}
    values |= {f"{where}_{key}": settings[key] for where in ("glob", "loc") for key in ("second_order", "dogleg")}
    values |= {"glob_opt": settings["kind"], "loc_opt": settings["kind"]}
    for key, value in values.items():
        setattr(config, key, value)
    config = APTS_D.setup_APTS_hparams(config)
    made = Repaired if settings["repair"] else APTS_D
    options = {k: getattr(config, k) for k in ("glob_opt", "glob_opt_hparams", "loc_opt", "loc_opt_hparams")}
    options |= config.apts_params | {"criterion": torch.nn.CrossEntropyLoss(), "device": "cpu", "nr_models": 2}
    with redirect_stdout(io.StringIO()):  # it says which optimisers it has
        return made(
            model.parameters(),
            model=model,
            **options,
            foc=True,
            norm_type=2,
            max_loc_iters=3,
            max_glob_iters=1,
            tol=1e-6,
        )


def main(folder: Path, rank: int) -> None:
    """Be one of the ranks: run until the goal or the end of the budget, and write the marks."""
    data = torch.load(folder / "data", weights_only=True)
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(data["folder"]) / "src"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    widths = [data["views"][0].shape[1], *(view.shape[0] for view in data["views"][1::2])]
    if data["views"][0].shape[0] == data["inputs"].shape[1]:  # weights are kept transposed
        data["views"] = [view.T for view in data["views"]]
        widths = [data["views"][0].shape[1], *(view.shape[0] for view in data["views"][1::2])]
    optimiser(Network(Config(widths)), METHODS[data["name"]])  # imports are no set-up
    begin = time.process_time()
    model = Network(Config(widths))
    for p, view in zip(model.parameters(), data["views"], strict=True):
        p.data.copy_(view)
    apts = optimiser(model, METHODS[data["name"]])
    setup = time.process_time() - begin
    counter, half = Counter(), len(data["labels"]) // 2
    mine = slice(rank * half, (rank + 1) * half)
    x, y = data["inputs"][mine], data["labels"][mine]
    marks: list[dict[str, float]] = []
    cpu = seconds = 0.0
    while True:
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(x), y)
        said = counter.unseen(torch.tensor([float(loss) / 2, cpu, counter.gradients / 2], dtype=torch.float64))
        mark = {"number": float(said[0]), "cpu": float(said[1]), "seconds": seconds, "gradients": float(said[2])}
        marks.append(mark | {"vectors": counter.vectors, "scalars": counter.scalars})
        over = mark["number"] <= data["goal"] or mark["cpu"] >= data["seconds"]
        if over or mark["gradients"] >= data["gradients"] or not math.isfinite(mark["number"]):
            break
        dist.barrier()
        times = time.process_time(), time.perf_counter()
        apts.step(x, y)
        cpu += time.process_time() - times[0]
        seconds += time.perf_counter() - times[1]
    both = counter.unseen(torch.tensor([setup], dtype=torch.float64))
    if rank == 0:
        (folder / "marks.json").write_text(json.dumps({"marks": marks, "setup": float(both[0])}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
