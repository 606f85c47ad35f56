"""Recognition of handwritten digits by fully connected networks (benchmark B1), in full or in mini-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import (
    Corrected,
    Decomposition,
    FirstLayer,
    Hierarchy,
    Identity,
    Level,
    LocalRestrictions,
    Objective,
    Price,
    SharedDecomposition,
    Stochastic,
    check_choices,
    contiguous,
    sampled,
)
from mldd.loop import Problem
from mldd.problems.data import load_digits_images
from mldd.problems.images.sample_model import SampleModel
from mldd.problems.nets import (
    ACTIVATIONS,
    Activation,
    Classification,
    Dense,
    Draw,
    MiniBatches,
    draw_of,
    first_of_dense,
    parse_widths,
    pieces,
    shares_of,
    subset,
)
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

# Hyper-parameters for full batches of 1,400 digits: tuned on the training loss after 300 steps, seeds 0 and 1.
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "local-adam": {"parts": 4, "local.lr": 0.01},
    "sgd": {"lr": 0.3, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.1},
    "adagrad": {"rate": 0.1, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.1, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.1, "local.varsigma": 1e-3, "parts": 2, "global_steps": 1},
    "apts": {"parts": 2},
    "aspqn": {"parts": 2},
    "mspqn": {"parts": 2},
    # three layers that change together: the sum of their steps is too long
    "schwarz": {"parts": 3, "damping": 1 / 3},
    "mofftr": {"smoother.rate": 0.1, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    # after 50 synchronisations of two parts, seed 1
    "localsgd": {"parts": 2, "local.lr": 0.3, "local.momentum": 0.9, "memory": "keep"},
    "diloco": {"parts": 2, "local.lr": 0.01},
}
_CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "dtype": ("float64", "float32"),
    "subdomains": ("parameters", "data"),
    "sampling": ("nested", "shared", "independent"),
}


@dataclass(frozen=True)
class Digits(Problem):
    """Recognise scikit-learn's digits with a 64-128-64-10 network (benchmark B1).

    With `batch` > 0 the objective offers ``sample(step)``: the mean loss over the mini-batch S of an outer step, drawn
    as `MiniBatches` says. What coarse levels and subdomains see of that step is the choice `sampling`:

    ============= ================================== =============================================================
    `sampling`    level k of the hierarchy           part i of p of the data
    ============= ================================== =============================================================
    nested        the first ``|S| / 2^k`` of S       the i-th piece of S
    shared        S (coarse steps are local steps)   the i-th piece of S
    independent   a mini-batch of its own, from the  ``|S| / p`` of its own samples, anew for every *local* step
                  first ``samples / 2^k``            where a solver asks the local models for ``sample(h)``
    ============= ================================== =============================================================

    Layers as subdomains see all of S. Objectives that are not samples (``batch`` = 0, or the loss over all samples
    itself) give levels of the first ``samples / 2^k`` and parts with all of their samples.

    Parameters
    ----------
    hidden : str
        Hidden widths joined by "-".
    activation : {"tanh", "relu", "sigmoid"}
        Of the hidden layers.
    samples : int
        Training samples, the first ones of a seeded permutation; the others are for testing.
    seed : int
        Of that permutation, and of mini-batches.
    subdomains : {"parameters", "data"}
        What is decomposed: the layers of the network, or the samples, where every part updates all parameters and has
        the mean loss over its own samples, first-order corrected unless asked otherwise.
    batch : int
        Samples of a mini-batch; 0 for full batches.
    growth : float
        Factor on `batch` per epoch, >= 1.
    sampling : {"nested", "shared", "independent"}
        What coarse levels and parts see of a mini-batch, see above.
    dtype : {"float64", "float32"}
        Of parameters, samples and evaluations.
    device : {"cpu", "cuda", "auto"}
        Where the samples and all evaluations are.
    comm : Communicator
        Its ranks divide the samples.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    hidden: str = "128-64"
    activation: Activation = "tanh"
    samples: int = 1400
    seed: int = 0
    subdomains: Literal["parameters", "data"] = "parameters"
    batch: int = 0
    growth: float = 1.0
    sampling: Literal["nested", "shared", "independent"] = "nested"
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        parse_widths(self.hidden)
        check_choices(self, _CHOICES)
        if not 10 <= self.samples < 1797:
            raise ValueError(f"`samples` must be in 10..1796, got {self.samples}")
        if not 0 <= self.batch <= self.samples:
            raise ValueError(f"`batch` must be in 0..{self.samples} (0: all samples), got {self.batch}")
        if not 1 <= self.growth < math.inf:
            raise ValueError(f"`growth` must be >= 1 and finite, got {self.growth}")
        if self.growth > 1 and self.batch == 0:
            raise ValueError(f"`growth` needs mini-batches, got {self.growth} with batch=0; set batch=64")

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def _permuted(self) -> tuple[Tensor, Tensor]:
        images, labels = load_digits_images()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        return images[order].to(**self._kind), labels[order].to(self._kind["device"])

    @cached_property
    def net(self) -> Dense:
        """The network."""
        return Dense((64, *parse_widths(self.hidden), 10), self.activation)

    def _loss(self, rows: Tensor, price: Price, comm: Communicator | None, drawn: Draw | None = None) -> Classification:
        """Return the mean loss over the samples `rows`, divided over the ranks of `comm`."""
        mine = range(len(rows)) if comm is None else comm.share(len(rows))
        images, labels = (of_all[rows[mine.start : mine.stop].to(of_all.device)] for of_all in self._permuted)
        price = price.scaled(len(mine) / len(rows))
        return Classification(self.net, images, labels, len(rows), price, comm, drawn=drawn)

    def _level(self, k: int) -> Objective:
        """Return the loss of level `k`: over the first ``samples / 2^k``, with mini-batches where there are any."""
        samples = self.samples >> k
        full = self._loss(torch.arange(samples), Price(samples / self.samples, fine=k == 0), self.comm)
        if self.batch == 0:
            return full
        own = self.sampling == "independent"
        size = max(1, self.batch >> k) if own else self.batch
        batches = MiniBatches(samples if own else self.samples, size, self.growth, (self._key, 0, k if own else 0))

        def draw(step: int) -> Classification:
            rows = batches.rows(step)
            if self.sampling == "nested":
                rows = rows[: max(1, len(rows) >> k)]
            price = Price(len(rows) / self.samples, fine=k == 0)
            return self._loss(rows, price, self.comm, Draw(step, rows))

        return Stochastic(full, draw)

    @cached_property
    def _key(self) -> int:
        return self.seed % 2**64

    @cached_property
    def _objective(self) -> Objective:
        return self._level(0)

    def objective(self, sample: int | None = None) -> Objective:
        """Return the loss over all training samples; with mini-batches it offers ``sample(step)``.

        Parameters
        ----------
        sample : int, optional
            Asks for the mini-batch of this outer step.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self.net.initial(seed).to(**self._kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss over all samples, over the first half of them, over the first quarter, ...

        Raises
        ------
        ValueError
            No level, or a coarsest one of fewer than ten samples.
        """
        smallest = self.batch if self.batch and self.sampling != "shared" else self.samples
        most = max(1, int(math.log2(smallest / 10)) + 1)
        if not 1 <= levels <= most:
            raise ValueError(f"`levels` must be in 1..{most} for {smallest} samples, got {levels}")
        made = [Level(self.objective())]
        for k in range(1, levels):
            f = self._level(k)
            made.append(Level(f, Identity(f.size), (self.samples >> k) / self.samples))
        return Hierarchy(tuple(made))

    def decomposition(
        self, parts: int, overlap: int = 0, comm: Communicator | None = None
    ) -> Decomposition | SharedDecomposition:
        """Return the decomposition of the parameters into runs of layers, or of the samples into consecutive pieces.

        Parameters
        ----------
        parts : int
        overlap : int
            Layers, or samples, that are added to every part on both sides.
        comm : Communicator, optional
            The ranks that share the parts, the problem's own by default.

        Raises
        ------
        ValueError
            More parts than layers or samples, fewer than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        of_data = self.subdomains == "data"
        most = (self.batch or self.samples) if of_data else self.net.layers
        if not 1 <= parts <= most:
            what = "layers of the network" if not of_data else "mini-batch" if self.batch else "samples"
            raise ValueError(f"`parts` must be in 1..{most} (the {what}), got {parts}")
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")
        if overlap < 0:
            raise ValueError(f"`overlap` must be >= 0, got {overlap}")
        return self._by_data(parts, overlap, comm) if of_data else self._by_layers(parts, overlap, comm)

    def _by_layers(self, parts: int, overlap: int, comm: Communicator) -> Decomposition:
        layout = self.net.layout

        @lru_cache(maxsize=1)  # ranks hold other subdomains, so each evaluates all samples
        def whole(drawn: Draw | None) -> Classification:
            rows = torch.arange(self.samples) if drawn is None else drawn.rows
            return self._loss(rows, Price(len(rows) / self.samples), None)

        def build(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            return LocalRestrictions(whole(draw_of(f)), decomposition, x.clone())

        subdomains = contiguous(layout.blocks, parts, overlap)
        return Decomposition(layout.size, subdomains, build, comm.share(parts), blocks=layout.slices)

    def _by_data(self, parts: int, overlap: int, comm: Communicator) -> SharedDecomposition:
        layout, own = self.net.layout, pieces(torch.arange(self.samples), parts, overlap)

        @cache
        def whole(chosen: range) -> Classification:
            return self._losses([own[k] for k in chosen])

        @lru_cache(maxsize=parts)
        def share(chosen: range, drawn: Draw) -> Objective:
            if self.sampling == "independent":
                return self._drawing(own, chosen, drawn)
            widened = -(-overlap * len(drawn.rows) // self.samples)
            of_sample = pieces(drawn.rows, parts, widened)
            return self._losses([of_sample[k] for k in chosen])

        def build(decomposition: SharedDecomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            drawn, chosen, y0 = draw_of(f), decomposition.local, decomposition.gather(x)
            local = whole(chosen) if drawn is None else share(chosen, drawn)
            bounds = decomposition.gather_bounds(f.bounds, y0)
            if g is None and bounds.is_free:
                return local
            delta = torch.zeros_like(y0) if g is None else g - local.gradient(y0)
            return Corrected(local, delta, y0, bounds)

        def shares(f: Objective) -> Tensor:
            drawn = draw_of(f)
            if drawn is not None and self.sampling == "independent":  # as many samples of each
                return torch.full((parts,), 1.0 / parts, dtype=torch.float64)
            widened = 0 if drawn is None else -(-overlap * len(drawn.rows) // self.samples)
            return shares_of(own if drawn is None else pieces(drawn.rows, parts, widened))

        mine, device = comm.share(parts), self._kind["device"]
        return SharedDecomposition(
            layout.size, parts, build, None, mine, blocks=layout.slices, device=device, shares=shares
        )

    def _losses(self, rows: list[Tensor]) -> Classification:
        """Return the mean losses over several sets of samples as one batched objective of (p, N)."""
        images, labels = self._permuted
        lengths = [len(of_part) for of_part in rows]
        width = max(lengths, default=1)
        index = torch.zeros(len(rows), width, dtype=torch.int64)
        weights = torch.zeros(len(rows), width, dtype=images.dtype)
        for k, of_part in enumerate(rows):
            index[k, : len(of_part)] = of_part
            weights[k, : len(of_part)] = 1.0 / max(len(of_part), 1)
        share = sum(lengths) / max(len(rows), 1) / self.samples
        return Classification(
            self.net,
            images[index.to(images.device)],
            labels[index.to(images.device)],
            width,
            Price(share, fine=False),
            None,
            None if set(lengths) <= {width} else weights.to(images.device),
        )

    def _drawing(self, own: list[Tensor], chosen: range, drawn: Draw) -> Stochastic:
        """Return losses over mini-batches of the parts' own samples, with another one for every local step h."""
        count = max(1, min(len(drawn.rows) // len(own), *map(len, own)))

        def draw(h: int) -> Classification:
            return self._losses([own[k][subset(len(own[k]), count, self._key, 1, drawn.step, h, k)] for k in chosen])

        return Stochastic(draw(0), draw)

    def first_layer(self) -> FirstLayer:
        """Return the pixels of this rank's share of the training samples."""
        mine = self.comm.share(self.samples)
        return first_of_dense(self.net, self._permuted[0][mine.start : mine.stop], self.samples, self.comm.sum)

    def module(self, x: Tensor) -> SampleModel:
        """Return the network with these parameters, which recognises any digits of 8 x 8 pixels in 0..1."""
        return SampleModel(self.net, x)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        found = dict(_SETTINGS.get(solver, {}))
        if self.subdomains == "parameters":
            found["parts"] = min(found.get("parts", 2), len(self.net.layout.blocks))
        return found

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the accuracies on training and test samples."""
        images, labels = self._permuted
        net = self.net
        with torch.no_grad():
            right = (net.outputs(net.layout.views(x), images).argmax(1) == labels).double()
        return {
            "train_accuracy": float(right[: self.samples].mean()),
            "test_accuracy": float(right[self.samples :].mean()),
        }
