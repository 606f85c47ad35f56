"""Handwritten digits for the experiments: files of MNIST, or scikit-learn's small ones.

The first four-fifths of the images, in a seeded order, are for training where there are no files of training images
(``train-images-idx3-ubyte.gz``): with the 10,000 test images of MNIST alone, 8,000 train and 2,000 test.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import torch

from experiments.study import Case, minimise
from mldd import Stop
from mldd.problems import SupervisedProblem
from mldd.problems.data import load_digits_images
from mldd.ranks import Communicator


def read_idx(path: Path, header: int) -> torch.Tensor:
    """Return the bytes of a file of MNIST after its header."""
    with gzip.open(path) as file:
        return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)


def mnist() -> Path:
    """Return the folder of the files of MNIST."""
    return Path(os.environ.get("MLDD_DATA", "data")) / "mnist"


def known(name: str) -> str:
    """Return "mnist" where its files are, else "digits", and say so."""
    if name == "mnist" and not (mnist() / "t10k-images-idx3-ubyte.gz").exists():
        print(f"no images of mnist in {mnist()}: scikit-learn's digits instead", flush=True)
        return "digits"
    return name


def images_of(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images in [0, 1], shape (n, pixels), labels, and the numbers of the test images."""
    if name == "digits":
        images, labels = load_digits_images()
    else:
        folder = mnist()
        if not (folder / "t10k-images-idx3-ubyte.gz").exists():
            raise SystemExit(f"images of mnist expected in {folder}, got none; set MLDD_DATA, or give --data digits")
        sets = [part for part in ("train", "t10k") if (folder / f"{part}-images-idx3-ubyte.gz").exists()]
        read = [read_idx(folder / f"{part}-images-idx3-ubyte.gz", 16).view(-1, 784) for part in sets]
        images = torch.cat(read).double() / 255.0
        labels = torch.cat([read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8) for part in sets]).long()
        if len(sets) == 2:
            return images, labels, torch.arange(len(read[0]), len(images))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images, labels, order[: len(labels) // 5]


def classifier(name: str, subdomains: str, seed: int, comm: Communicator) -> SupervisedProblem:
    """Return the network of the APTS papers, pixels-32-32-10 with ReLU and sigmoid, on images.

    The log-softmax of its outputs goes into the cross-entropy again as there, whose least value is then 1.461 for
    outputs in [0, 1].
    """
    images, labels, test = images_of(name)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(images.shape[1], 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
        torch.nn.Sigmoid(),
    ).double()
    problem = SupervisedProblem(
        net, (images, labels), torch.nn.functional.cross_entropy, {"test": test}, subdomains=subdomains, comm=comm
    )
    return problem


def trained(problem: SupervisedProblem, solver: Any, steps: int, comm: Communicator) -> Case:
    """Train so many steps; return test accuracies on the way, in per cent, the losses at both ends, and the costs."""
    shares = (10, 25, 50, 100)
    curve = {f"accuracy_{share}": float("nan") for share in shares}

    def note(x: torch.Tensor, state: Any, history: Any) -> None:
        for share in shares:
            if history.records[-1].step == max(1, steps * share // 100):
                curve[f"accuracy_{share}"] = 100 * problem.metrics(x)["test_accuracy"]

    result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(steps), after_step=note, comm=comm)
    end = result.record
    ends = {"loss_first": result.history.records[0].value, "loss": end.value}
    return curve | ends | {"gradients": end.cost.gradient_evaluations, "work": end.cost.work_total}
