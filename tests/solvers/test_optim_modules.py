"""Optimizers of modules as they are: Lightning, batch normalisation, strides, sparse gradients, compiled ones."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from mldd.solvers import (
    LBFGS,
    AdaGrad,
    Adam,
    NonlinearSchwarz,
    Optimizer,
    SchwarzAdaGrad,
    Sgd,
    TorchAdaGrad,
    TrustRegion,
)
from tests.solvers.test_optim import closure_of, data, flat, groups, network, train


@pytest.mark.parametrize("solver", [LBFGS(), Adam(0.05), lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2)])
def test_a_lightning_loop(solver, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.losses = []

        def training_step(self, batch, number):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, outputs, batch, number):
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self):
            return Optimizer(groups(self.net), solver)

    def trainer(epochs):
        options = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar")}
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **options
        )

    module = Regression()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(module.net)), batch_size=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        first = trainer(6)
        first.fit(module, loader)
        first.save_checkpoint(tmp_path / "half.ckpt")
        plain = network()
        train(plain, Optimizer(groups(plain), solver), 6)
        torch.testing.assert_close(flat(module.net), flat(plain), rtol=0, atol=1e-12)
        resumed = Regression()
        trainer(9).fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt")
    train(plain_again := network(), Optimizer(groups(plain_again), solver), 9)
    torch.testing.assert_close(flat(resumed.net), flat(plain_again), rtol=0, atol=1e-12)
    assert resumed.trainer.optimizers[0].solver_state.step == 9
    assert module.losses[-1] < module.losses[0]


def test_gradients_of_any_strides_and_parameters_of_any_shape():
    def convolution():
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 2).double(), nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def losses(net, scale, make):
        net.to(memory_format=torch.channels_last)
        optimizer = make([*net.parameters(), scale])
        images = torch.linspace(-1, 1, 2 * 3 * 5 * 5, dtype=torch.float64).view(2, 3, 5, 5)

        def closure():
            optimizer.zero_grad()
            loss = (scale * net(images.to(memory_format=torch.channels_last)) - 1).square().mean()
            loss.backward()
            # as they may come from hooks or kernels
            net.weight.grad = net.weight.grad.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
            return loss

        return [float(optimizer.step(closure).detach()) for _ in range(10)]

    ours = losses(*convolution(), lambda params: Optimizer(params, Sgd(0.1)))
    theirs = losses(*convolution(), lambda params: torch.optim.SGD(params, lr=0.1))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    fitted = losses(*convolution(), lambda params: Optimizer(params, LBFGS()))
    assert fitted[-1] < theirs[-1]


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True).double()
    optimizer = Optimizer(table.parameters(), Adam())
    before = flat(table)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense, got torch.sparse_coo; use sparse=False"):
        optimizer.step()
    assert torch.equal(flat(table), before)


def test_strides_that_change_are_noticed():
    module = nn.Linear(3, 3, bias=False).double()
    optimizer = Optimizer(module.parameters(), Sgd(0.1))
    inputs = torch.eye(3, dtype=torch.float64)
    closure = closure_of(module, optimizer, inputs, torch.zeros(3, 3, dtype=torch.float64))
    optimizer.step(closure)
    module.weight.data = module.weight.data.t()
    expected = module.weight.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(module.weight.detach(), expected * (1 - 0.1 * 2 / 9))


def test_two_optimizers_of_one_module_take_turns():
    module, other = network(), network()
    pairs = [
        (Optimizer(m.parameters(), Sgd(0.1)), torch.optim.SGD(n.parameters(), lr=0.1)) for m, n in [(module, other)] * 2
    ]
    for ours, theirs in [*pairs, *pairs]:
        assert train(module, ours, 2) == train(other, theirs, 2)
    assert torch.equal(flat(module), flat(other))


@pytest.mark.parametrize(
    "solver",
    [LBFGS(), TrustRegion(), AdaGrad(rate=0.1, curvature="exact"), partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1))],
)
def test_batch_norm_keeps_the_statistics_of_the_first_evaluation(solver):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = Optimizer(module.parameters(), solver)
    inputs, targets = data(module)
    closure, calls = closure_of(module, optimizer, inputs, targets), []

    def counted():
        calls.append(1)
        return closure()

    twin = copy.deepcopy(module[:2])
    with pytest.warns(
        UserWarning, match="evaluates the loss several times a step, and 3 buffers of the module"
    ) as told:
        for _ in range(4):
            twin.load_state_dict(
                {k: v for k, v in module.state_dict().items() if k in dict(twin.named_parameters())}, strict=False
            )
            twin(inputs)
            optimizer.step(counted)
            for buffer, expected in zip(module.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)
    assert len(calls) > 5
    assert sum("buffers" in str(w.message) for w in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for single in (Adam(), Sgd(), TorchAdaGrad(), AdaGrad(rate=0.1)):
            train(module, Optimizer(module.parameters(), single), 2)  # one evaluation: as in torch
        module.eval()
        train(module, Optimizer(module.parameters(), solver), 2)


class OwnNorm(nn.Module):
    """Statistics in buffers of its own: no version and no counter tells that they are written to."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("var", torch.ones(width, dtype=torch.float64))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.var, training=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, affine=False).double(), OwnNorm(3)])
def test_statistics_of_a_module_beside_the_trained_one(norm):
    head = nn.Linear(3, 1).double()
    unused = nn.BatchNorm1d(2)
    unused.running_mean.fill_(math.nan)
    optimizer = Optimizer(head.parameters(), LBFGS())
    inputs, targets = data(head)
    twin = copy.deepcopy(norm)
    closure = closure_of(lambda x: head(norm(x)), optimizer, inputs, targets)
    with pytest.warns(UserWarning, match=f" {len(list(norm.buffers()))} buffers of the module"):
        for _ in range(4):
            twin(inputs)
            optimizer.step(closure)
            for buffer, expected in zip(norm.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)
    assert float(optimizer.step(closure)) < 0.99 * float(targets.square().mean())


def test_an_optimizer_for_each_group_gives_each_its_rate():
    """With one gradient for both."""
    module, other = network(), network()
    closure = closure_of(module, module, *data(module))
    ours = [Optimizer(module[0].parameters(), Adam(0.01)), Optimizer(module[3].parameters(), Adam(0.001))]
    theirs = torch.optim.Adam(groups(other, lr=0.001), lr=0.01)
    for _ in range(5):
        closure()
        for optimizer in ours:
            optimizer.step()
        theirs.step(closure_of(other, theirs, *data(other)))
    assert torch.equal(flat(module), flat(other))


def test_lightning_accumulates_for_one_gradient_a_step_only(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Regression(lightning.LightningModule):
        def __init__(self, make):
            super().__init__()
            self.net, self.make = network(), make

        def training_step(self, batch, number):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = self.make(groups(self.net, name="last"))
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 1.0 if "LBFGS" in str(self.make) else 0.5)
            return [optimizer], [schedule]

    def fitted(make):
        module = Regression(make)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(module.net)), batch_size=10)
        trainer = lightning.Trainer(
            max_epochs=3,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=lightning.loggers.CSVLogger(tmp_path),
            callbacks=[lightning.callbacks.LearningRateMonitor()],
            log_every_n_steps=1,
            **{name: False for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")},
        )
        trainer.fit(module, loader)
        return flat(module.net), {k: float(v) for k, v in trainer.callback_metrics.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, rates = fitted(partial(Optimizer, solver=Adam(), lr=0.01))
        y, expected = fitted(partial(torch.optim.Adam, lr=0.01))
        assert torch.equal(x, y)
        assert rates == {key.replace("Adam", "Optimizer"): rate for key, rate in expected.items()} != {}
        with pytest.raises(ValueError, match="the closure must clear all gradients .*accumulate_grad_batches=1"):
            fitted(partial(Optimizer, solver=LBFGS()))


def test_a_compiled_module_is_compiled_once():
    torch._dynamo.reset()
    graphs = []

    def train_norms(compiled):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
        called = (
            torch.compile(module, fullgraph=True, backend=lambda g, _: graphs.append(g) or g) if compiled else module
        )
        optimizer = Optimizer(module.parameters(), LBFGS())
        closure = closure_of(called, optimizer, *data(module))
        return [float(optimizer.step(closure)) for _ in range(4)], list(module.buffers())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (losses, buffers), (expected, kept) = train_norms(True), train_norms(False)
    assert len(graphs) == 1
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(buffers, kept)
    assert int(buffers[2]) == 4  # once a step


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
        (Sgd(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=Sgd(0.1, 0.9).nesterov)),
    ],
)
def test_parameters_that_are_frozen_on_the_way_stay_as_with_torch(ours, theirs):
    module = network()
    twin = copy.deepcopy(module)
    pairs = [(module, Optimizer(module.parameters(), ours)), (twin, theirs(twin.parameters()))]
    for step in range(8):
        for net, optimizer in pairs:
            next(net.children()).requires_grad_(step < 4)
            optimizer.step(closure_of(net, optimizer, *data(net)))
        torch.testing.assert_close(flat(module), flat(twin), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", [LBFGS(), TrustRegion()])
def test_solvers_of_all_unknowns_start_anew_where_parameters_are_frozen(solver):
    """Behind the freezing, steps are those of a new optimizer of the other parameters alone."""
    module = network()
    optimizer = Optimizer(module.parameters(), solver, check=False)
    train(module, optimizer, 3)
    frozen = next(module.children()).requires_grad_(False)
    before = flat(frozen).clone()
    twin = copy.deepcopy(module)
    other = Optimizer([p for p in twin.parameters() if p.requires_grad], solver, check=False)
    for net, its in ((module, optimizer), (twin, other)):
        train(net, its, 4)
    assert torch.equal(flat(frozen), before) and optimizer.solver_state.step == 7
    torch.testing.assert_close(flat(module), flat(twin), rtol=1e-9, atol=1e-11)


def test_a_parameter_in_two_groups_is_refused():
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="parameters must be there once each, got one several times"):
        Optimizer([weight, weight], Adam())
