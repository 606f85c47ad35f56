"""Subdomains of one rank evaluated together: the numbers of one after the other, or a loop and a sentence on why."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mldd.algebra import counting
from mldd.problems.modules import SupervisedProblem
from mldd.problems.modules.part_losses import PartLosses


def data(n=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def net(*middle):
    torch.manual_seed(0)
    widths = [4, 5, 6, 5, 4, 5, 3]
    layers = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.Tanh())]  # six layers
    return nn.Sequential(*layers[:-1], *middle).double()


def evaluations(problem, subdomains, parts):
    """Values, gradients and products of the local models of a problem at other points for every subdomain."""
    d = problem.decomposition(parts, 0, subdomains=subdomains)
    f, x = problem.objective(), problem.initial()
    models, y = d.models(f, x, f.gradient(x)), d.gather(x)
    y = y + 0.1 * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape) * d.valid
    v = torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape) * d.valid
    with counting() as cost:
        made = (*models.value_and_gradient(y), models.value(y), models.hessian_product(y, v))
    return made, cost


@pytest.mark.parametrize(("subdomains", "parts"), [("data", 8), ("data", 9), ("layers", 6), ("both", 2)])
@pytest.mark.parametrize("loss", [functional.cross_entropy, nn.CrossEntropyLoss(reduction="sum")])
def test_together_as_one_after_the_other(subdomains, parts, loss):
    found = []
    for together in (True, False):
        problem = SupervisedProblem(net(), data(), loss)
        stacked = problem._quiet.stacked
        stacked.usable = None if together else False
        found.append(evaluations(problem, subdomains, parts))
        assert stacked.usable is together and "notes" not in problem.details()
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    assert found[0][1] == found[1][1]  # counted alike


class Random(nn.Module):
    def forward(self, x):
        return x + 0.0 * torch.rand(1)


class Hidden(nn.Module):
    """Its parameter is seen past its name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.held = [self.scale]

    def forward(self, x):
        return x * self.held[0]


class Depends(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 1e9 else 2 * x


@pytest.mark.parametrize(
    ("middle", "words"), [(Random, "vmap cannot run it"), (Depends, "vmap cannot run it"), (Hidden, "are others than")]
)
def test_what_vmap_cannot_run_is_a_loop_and_said(middle, words):
    problem, twin = (SupervisedProblem(net(middle()), data(), functional.cross_entropy) for _ in range(2))
    twin._quiet.stacked.usable = False
    ours, theirs = evaluations(problem, "data", 8), evaluations(twin, "data", 8)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(a, b)
    (note,) = problem.details()["notes"]
    assert note.startswith("subdomains are evaluated one after the other, which takes longer: ") and words in note
    assert "notes" not in twin.details()


def test_statistics_of_batches_are_left_to_the_loop():
    problem = SupervisedProblem(nn.Sequential(net(), nn.BatchNorm1d(3)).double(), data(), functional.cross_entropy)
    d = problem.decomposition(8, 0, subdomains="data")
    models = d.models(problem.objective(), problem.initial(), None)
    assert isinstance(models, PartLosses) and all(group.batch is None for group in models._groups)
    assert "dropout or statistics of batches" in problem.details()["notes"][0]
