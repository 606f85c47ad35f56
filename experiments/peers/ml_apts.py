"""ASPQN of ML_APTS (https://github.com/cruzas/ML_APTS, commit 0d4109c) from a checkout of it, on two ranks.

Its trainer and its network are imported and given our start and points; a package that prints summaries is stood in
for. Its first step, which does not run for PINNs at that commit, is done here: one step of its own global L-BFGS. "by
subdomain" is its line search subdomain by subdomain, "coarse" adds its coarse step; 10 local steps, history 10.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from experiments.peers.race import Method, Race
from experiments.peers.two_ranks import peer_main, run_peer

METHODS: dict[str, dict[str, bool]] = {
    "ml_apts aspqn, averaged": {"layerwise_lr_update": False, "use_coarse": False},
    "ml_apts aspqn, by subdomain": {"layerwise_lr_update": True, "use_coarse": False},
    "ml_apts aspqn, coarse": {"layerwise_lr_update": True, "use_coarse": True},
}


def aspqn(folder: Path, name: str) -> Method:
    """Return a method that runs ASPQN in processes of its own."""
    if not (folder / "src" / "trainers" / "SPQNTrainerRight_parallel.py").is_file():
        raise SystemExit(f"--ml-apts must be a checkout of commit 0d4109c, with src/trainers in it, got {folder}")

    def run(race: Race, rate: float) -> None:
        problem = race.problem
        views = [view.clone() for view in problem.net.layout.views(problem.initial(race.seed))]
        (test, exact), (points, ends) = problem.test, problem.collocation
        data = {"views": views, "points": points, "ends": ends, "test": test, "exact": exact}
        data["loss"] = float(problem.objective().value(problem.initial(race.seed)))
        run_peer(race, "experiments.peers.ml_apts", data | {"folder": str(folder / "src"), "name": name})

    return Method(run)


def criterion_of(ends: torch.Tensor) -> Any:
    """Return what gives values, loss and loss again of ``-u'' = sin(pi x)`` with squared errors at the two ends."""

    def criterion(net: torch.nn.Module, x: torch.Tensor) -> Any:
        u = net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        loss = torch.where(ends, u, ddu + torch.sin(torch.pi * x)).square().mean()
        return u, loss, loss

    return criterion


def trainer_of(settings: dict[str, bool]) -> Any:
    """Return its trainer."""
    summary: Any = ModuleType("torchsummary")
    summary.summary = None
    sys.modules.setdefault("torchsummary", summary)
    from trainers.SPQNTrainerRight_parallel import ASPQNTrainerRightDistrib  # type: ignore[import-not-found]

    class Trainer(ASPQNTrainerRightDistrib):  # type: ignore[misc]
        def init_global_optim(self, net: Any, dataset: Any, crit: Any, kind: Any, args: Any) -> None:
            def closure() -> Any:
                self.global_optimizer.zero_grad()
                _, loss, _ = crit(self.global_net, dataset.train_loader[0])
                loss.backward()
                return loss

            self.global_optimizer.step(closure)
            with torch.no_grad():
                for mine, local in zip(self.global_net.parameters(), net.parameters(), strict=True):
                    local.copy_(mine)
            self.global_opt_initialized = True

    return Trainer(True, 2, freq_print=10**9, **settings)


def prepared(data: dict[str, Any], rank: int) -> Any:
    """Return a step of this rank, its share of the error, and what its gradients are worth: each is on all points."""
    sys.path.insert(0, data["folder"])
    torch.set_default_dtype(torch.float64)
    trainer = trainer_of(METHODS[data["name"]])
    from models.FFNConstantWidth import FFNConstantWidth  # type: ignore[import-not-found]
    from trainers.PrecLBFGS import PrecLBFGS  # type: ignore[import-not-found]

    views = data["views"]
    net = FFNConstantWidth(1, 1, len(views) // 2 - 2, views[0].shape[0], "tanh", False)
    tensors = dict(net.named_parameters())
    places = ["linearIn", *(f"linear.{k}" for k in range(len(views) // 2 - 2)), "linearOut"]
    for name, weight, bias in zip(places, views[::2], views[1::2], strict=True):
        tensors[f"{name}.weight"].data.copy_(weight)
        tensors[f"{name}.bias"].data.copy_(bias)
    args = argparse.Namespace(
        history=10, overlap_width=0, num_local_steps=10, num_coarse_steps=5, num_batches=1, freq=1
    )
    args.lr_global, args.use_SPQN = 1.0, False
    x = data["points"].clone().requires_grad_()
    dataset, criterion = argparse.Namespace(train_loader=[x]), criterion_of(data["ends"])
    if not math.isclose(float(criterion(net, x)[1].detach()), data["loss"], rel_tol=1e-8):
        raise SystemExit(f"the loss must be {data['loss']} at the start, got {float(criterion(net, x)[1].detach())}")
    trainer.global_net, trainer.global_optimizer = trainer.define_global_network(net, PrecLBFGS, args)
    trainer.local_optimizers = trainer.define_local_networks(net, PrecLBFGS, args)
    trainer.coarse_optimizer = trainer.define_coarse_network(PrecLBFGS, args)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        try:
            trainer.train_step(done, dataset, net, criterion, PrecLBFGS, PrecLBFGS, None, args)
        except AttributeError as error:  # at its end, for the loss that it prints
            if "'int' object has no attribute 'item'" not in str(error):
                raise
        args.use_SPQN = True

    def share() -> float:
        with torch.no_grad():
            u = trainer.global_net(data["test"]).flatten()
        exact = data["exact"].flatten()
        return float((u - exact).norm() / exact.norm()) / 2

    return step, share, 1.0


if __name__ == "__main__":
    peer_main(prepared)
