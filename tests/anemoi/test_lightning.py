"""The callbacks in a plain Lightning training, on one process and on two ranks: as the optimizer by hand."""

import csv
import datetime
import json
import logging
import os
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from mldd.anemoi import CoarseStart, KeepWeights, Recorder, Subdomains, optimizer
from mldd.loop import read_csv
from mldd.solvers import LBFGS, Adam, Optimizer, SchwarzLBFGS

lightning = pytest.importorskip("pytorch_lightning")
environments = pytest.importorskip("lightning_fabric.plugins.environments")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
SCHWARZ = partial(SchwarzLBFGS, local_steps=1)
STEPS, HALF, RANKS = 3, 2, 2
PARTS = ("encoder", "processor", "decoder")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((3, 6), (6, 6))), nn.Linear(6, 1)
    ).double()


class Regression(lightning.LightningModule):
    """It knows nothing of groups, as modules of Anemoi."""

    def __init__(self, make):
        super().__init__()
        self.encoder, self.processor, self.decoder = network()
        self.make = make

    def forward(self, x):
        return self.decoder(self.processor(self.encoder(x)))

    def training_step(self, batch, number):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, number):
        self.log("val_loss", self.training_step(batch, number), sync_dist=True)

    def configure_optimizers(self):
        made = self.make(filter(lambda p: p.requires_grad, self.parameters()))
        return [made], [torch.optim.lr_scheduler.StepLR(made, 100)]


def samples(rank=None):
    """All samples, or those of a rank: very different ones, so that its own loss says nothing of the mean."""
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[12:] *= 3
    rows = slice(None) if rank is None else slice(12 * rank, 12 * rank + 12)
    return inputs[rows], inputs.prod(1, keepdim=True)[rows]


def loader(rank=None):
    inputs, targets = samples(rank)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=len(inputs))


def fitted(folder, make, callbacks, *, steps=STEPS, rank=None, start=None, keep=None, module=None, **options):
    """The module after a training of full batches."""
    module = Regression(make) if module is None else module
    # or else Lightning would start MPI to ask it for ranks
    plugins = [environments.LightningEnvironment(), *options.pop("plugins", ())]
    off = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=steps,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=callbacks,
            plugins=plugins,
            **off,
            **options,
        )
        trainer.fit(module, loader(rank), loader(rank), ckpt_path=start)
        if keep is not None:
            trainer.save_checkpoint(keep)
    return module


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def by_hand(make):
    """Parameters, losses and largest entries of gradients at the start of every step, and calls of the closure."""
    net, inputs, targets = network(), *samples()
    made, calls, rows = make(net), [], []

    def closure():
        made.zero_grad()
        loss = nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        calls.append((float(loss.detach()), max(float(p.grad.abs().max()) for p in net.parameters())))
        return loss

    for _ in range(STEPS):
        before = len(calls)
        made.step(closure)
        rows.append((*calls[before], before + 1))
    return flat(net), rows, len(calls)


def in_parts(net):
    return Optimizer([{"params": list(part.parameters())} for part in net], SCHWARZ)


# By the callbacks, and by hand.
CASES = {
    "schwarz": (partial(optimizer, lr=1.0, solver=SCHWARZ), True, in_parts),
    "lbfgs": (partial(optimizer, solver=LBFGS()), False, lambda net: Optimizer(net.parameters(), LBFGS())),
    "torch": (partial(torch.optim.Adam, lr=0.05), False, lambda net: torch.optim.Adam(net.parameters(), 0.05)),
}


def callbacks_of(case, out):
    return [*[Subdomains("parts")] * CASES[case][1], Recorder(out, "regression")]


@pytest.mark.parametrize("case", CASES)
def test_records_and_parameters_are_those_by_hand(case, tmp_path):
    make, _, hand = CASES[case]
    module = fitted(tmp_path, make, callbacks_of(case, tmp_path / "run"))
    x, rows, calls = by_hand(hand)
    torch.testing.assert_close(flat(module), x, rtol=0, atol=1e-12)
    history = read_csv(tmp_path / "run" / "history.csv")
    assert history.column("step") == list(range(STEPS + 1))
    for record, (loss, measure, evaluations) in zip(history.records, rows, strict=False):
        assert record.value == pytest.approx(loss, rel=1e-9) and record.measure == pytest.approx(measure, rel=1e-6)
        assert record.cost.gradient_evaluations == record.cost.synchronisations == evaluations
    last = history.records[-1]
    assert last.cost.gradient_evaluations == calls and last.value != last.value  # noqa: PLR0124 (NaN)
    for k, record in enumerate(history.records[1:], 1):  # validated on what it is trained on
        if k < STEPS:
            assert record.validation["val_loss"] == pytest.approx(record.value, rel=1e-9)
    assert "val_loss" in last.validation
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["problem"], result["steps"], result["gradient_evaluations"]) == ("regression", STEPS, calls)
    assert result["parts"] == (3 if case == "schwarz" else 1)
    assert result["solver"] == {"schwarz": "SchwarzLBFGS", "lbfgs": "LBFGS", "torch": "Adam"}[case]


def test_a_training_that_is_resumed_goes_on_in_its_files(tmp_path):
    make, out, whole = CASES["schwarz"][0], tmp_path / "run", tmp_path / "whole"
    kept = tmp_path / "half.ckpt"
    fitted(tmp_path, make, callbacks_of("schwarz", out), steps=HALF, keep=kept)
    module = fitted(tmp_path, make, callbacks_of("schwarz", out), start=kept)
    assert torch.equal(flat(module), flat(fitted(tmp_path, make, callbacks_of("schwarz", whole))))
    rows, expected = (list(csv.DictReader((folder / "history.csv").open())) for folder in (out, whole))
    for row in (*rows, *expected):
        assert float(row.pop("seconds")) > 0
    assert rows == expected
    with pytest.raises(OSError, match="must be a new file, got one that is there; give another `out`, or overwrite"):
        fitted(tmp_path, make, callbacks_of("schwarz", out))


def test_the_module_is_left_as_it_was(tmp_path):
    module = fitted(tmp_path, CASES["schwarz"][0], callbacks_of("schwarz", tmp_path / "run"), steps=1)
    assert "configure_optimizers" not in vars(module)


def scaled():
    from pytorch_lightning.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu")


REFUSED = {
    "gradient_clip_val": (
        {"gradient_clip_val": 32.0},
        "must not be clipped .* gradient_clip_val=32.0; set it to 0",
    ),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2; set it to 1"),
    "scaler": ({"plugins": [scaled]}, "GradScaler, which evaluates it once; set precision to bf16-mixed or 32-true"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("callback", [Subdomains, Recorder])
def test_what_a_solver_does_not_bear_is_refused(what, callback, tmp_path):
    options, words = REFUSED[what]
    options = {key: [make() for make in value] if key == "plugins" else value for key, value in options.items()}
    callbacks = [Subdomains()] if callback is Subdomains else [Recorder(tmp_path / "run")]
    make = CASES["schwarz" if callback is Subdomains else "lbfgs"][0]
    with pytest.raises(ValueError, match=words):
        fitted(tmp_path, make, callbacks, **options)


def test_one_gradient_a_step_bears_clipped_and_accumulated_ones(tmp_path):
    options = {"gradient_clip_val": 0.01, "accumulate_grad_batches": 2}
    found = [
        flat(fitted(tmp_path, make, [Recorder(tmp_path / name)], **options))
        for name, make in {"ours": partial(optimizer, lr=0.1, solver=Adam()), "torch": CASES["torch"][0]}.items()
    ]
    ours = fitted(tmp_path, partial(torch.optim.Adam, lr=0.1), [], **options)
    assert torch.equal(found[0], flat(ours)) and not torch.equal(*found)


def test_subdomains_need_an_optimizer_of_mldd(tmp_path):
    with pytest.raises(ValueError, match=r"needs the optimizer mldd.anemoi.optimizer, got Adam; name it as `_target_`"):
        fitted(tmp_path, CASES["torch"][0], [Subdomains()])


# ---------------------------------------------------------------------------------------------------- coarse start


class WithNodes(Regression):
    """It has parameters of single nodes, whose number depends on the mesh."""

    def __init__(self, make, nodes=3):
        super().__init__(make)
        self.trainable = nn.Parameter(torch.zeros(nodes, dtype=torch.float64))

    def forward(self, x):
        return super().forward(x) + self.trainable.mean()


def test_weights_are_handed_from_run_to_run(tmp_path, capsys):
    make, kept = CASES["torch"][0], tmp_path / "kept.pt"
    fine_make = partial(torch.optim.SGD, lr=0.0)  # it stays where it starts
    coarse = fitted(tmp_path, make, [KeepWeights(kept)], module=WithNodes(make, 3))
    fine = fitted(tmp_path, fine_make, [CoarseStart(kept)], module=WithNodes(fine_make, 5))
    for part in PARTS:
        assert torch.equal(flat(getattr(fine, part)), flat(getattr(coarse, part)))
    assert not fine.trainable.any() and coarse.trainable.all()
    assert "73 of 78 parameters start from" in capsys.readouterr().out
    ours = fitted(tmp_path, CASES["schwarz"][0], [CoarseStart(kept), Subdomains()], steps=1)
    started = by_hand(lambda net: torch.optim.SGD(net.parameters(), 0.0))[1][0][0]
    assert loss_of(ours) < loss_of(coarse) < started  # solvers of mldd start there, too


def loss_of(module):
    inputs, targets = samples()
    return float(nn.functional.mse_loss(module(inputs), targets).detach())


def test_weights_of_something_else_are_refused(tmp_path):
    make = CASES["torch"][0]
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    said = {
        "other": "this network, got other, ",
        "list": "got list",
        "broken": "must hold parameters",
        "none": "got none",
    }
    for name, words in said.items():
        with pytest.raises(ValueError, match=words):
            fitted(tmp_path, make, [CoarseStart(tmp_path / f"{name}.pt")], steps=1)


# ---------------------------------------------------------------------------------------------------- two ranks


def worker(rank, folder, queue):
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # as a launcher sets them; the group is made before, so that one start serves all trainings
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    options = {"strategy": "ddp", "devices": RANKS, "use_distributed_sampler": False}
    found = {}
    for case, (make, *_) in CASES.items():
        module = fitted(folder, make, callbacks_of(case, Path(folder, case)), rank=rank, **options)
        found[case] = flat(module)
    queue.put((rank, found))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """Folder of the records, and the parameters of both ranks by case; they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    queue = multiprocessing.get_context("spawn").Manager().Queue()
    multiprocessing.spawn(worker, (str(folder), queue), nprocs=RANKS)
    outs = dict(queue.get() for _ in range(RANKS))
    return folder, {case: [outs[rank][case] for rank in range(RANKS)] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process_with_all_samples(case, on_two_ranks):
    folder, found = on_two_ranks
    x, y = found[case]
    assert torch.equal(x, y)
    z, rows, calls = by_hand(CASES[case][2])
    torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5)
    history = read_csv(folder / case / "history.csv")
    for record, (loss, measure, evaluations) in zip(history.records, rows, strict=False):
        assert record.value == pytest.approx(loss, rel=1e-5) and record.measure == pytest.approx(measure, rel=1e-3)
        assert record.cost.gradient_evaluations == evaluations
    cost = history.records[-1].cost
    assert (cost.work_units, cost.work_total) == (calls / RANKS, calls)
    assert cost.bytes_exchanged == calls * RANKS * 8 * len(x)
    assert (cost.scalar_synchronisations >= calls) == (case != "torch")
