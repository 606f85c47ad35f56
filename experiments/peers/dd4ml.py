"""APTS of DD4ML (https://github.com/cruzas/DD4ML) from a checkout of it, on two ranks of torch.distributed.

Its optimiser is imported and given our network, start and halves of the samples; two packages that it imports and does
not need here are stood in for by empty modules. "repaired" adds the first-order correction to the gradient of the local
model, which it adds to the value alone (fa3027f), and begins the local steps with the gradient of the whole loss.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from experiments.peers.race import Method, Race
from experiments.peers.two_ranks import peer_main, run_peer

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
        f = race.problem.objective()
        views = [view.float() for view in f.net.layout.views(race.problem.initial(race.seed))]
        data = {"views": views, "inputs": f.inputs.float(), "labels": f.labels}
        run_peer(race, "experiments.peers.dd4ml", data | {"folder": str(folder / "src"), "name": name})

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
    """What DD4ML copies of a network, or reads its options from."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def import_apts() -> Any:
    """Return the class; datasets and logging that it imports are stood in for."""
    for name in ("wandb", "torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
        sys.modules.setdefault(name, ModuleType(name))
    torchvision: Any = sys.modules["torchvision"]
    torchvision.datasets, torchvision.transforms = (sys.modules[f"torchvision.{k}"] for k in ("datasets", "transforms"))
    resnet: Any = ModuleType("torchvision.models.resnet")
    resnet.resnet18 = resnet.BasicBlock = sys.modules["torchvision.models"].resnet18 = torch.nn.Identity  # type: ignore[attr-defined]
    sys.modules["torchvision.models.resnet"] = resnet
    import dd4ml.utility  # type: ignore[import-not-found] # noqa: F401 (first: the optimisers import it in a circle)
    from dd4ml.optimizers.apts_d import APTS_D  # type: ignore[import-not-found]

    return APTS_D


def repaired(apts: Any) -> Any:
    """Return the class with local gradients that are those of the corrected local loss."""

    class Repaired(apts):  # type: ignore[misc]
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

    return Repaired


def optimiser(model: Network, settings: dict[str, Any]) -> Any:
    """Return APTS_D with the radii, local and global steps of its configuration for MNIST, and a low floor."""
    apts = import_apts()
    values: dict[str, Any] = {"delta": 0.1, "min_delta": 1e-6, "max_delta": 1.0, "norm_type": 2, "tol": 1e-6}
    values |= {"mem_length": 3, "max_wolfe_iters": 5, "max_zoom_iters": 5, "paper_tr_update": False}
    values |= {f"{where}_{key}": settings[key] for where in ("glob", "loc") for key in ("second_order", "dogleg")}
    config = apts.setup_APTS_hparams(Config(**values, glob_opt=settings["kind"], loc_opt=settings["kind"]))
    options = {k: getattr(config, k) for k in ("glob_opt", "glob_opt_hparams", "loc_opt", "loc_opt_hparams")}
    options |= config.apts_params | {"criterion": torch.nn.CrossEntropyLoss(), "device": "cpu", "nr_models": 2}
    options |= {"foc": True, "norm_type": 2, "max_loc_iters": 3, "max_glob_iters": 1, "tol": 1e-6}
    made = repaired(apts) if settings["repair"] else apts
    with redirect_stdout(io.StringIO()):  # it says which optimisers it has
        return made(model.parameters(), model=model, **options)


def prepared(data: dict[str, Any], rank: int) -> Any:
    """Return a step of this rank, its share of the loss, and what its gradients are worth."""
    sys.path.insert(0, data["folder"])
    views = data["views"]
    model = Network(Config(widths=[views[0].shape[1], *(view.shape[0] for view in views[1::2])], model_type=None))
    for p, view in zip(model.parameters(), views, strict=True):
        p.data.copy_(view)
    apts = optimiser(model, METHODS[data["name"]])
    half = len(data["labels"]) // 2
    x, y = (data[name][rank * half : (rank + 1) * half] for name in ("inputs", "labels"))

    def share() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(x), y)) / 2

    return lambda: apts.step(x, y), share, 0.5


if __name__ == "__main__":
    peer_main(prepared)
