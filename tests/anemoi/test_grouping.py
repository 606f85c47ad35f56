"""Groups of named parameters, and the optimizer that a configuration names."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from mldd.anemoi import Subdomains, optimizer
from mldd.anemoi.grouping import grouped, labels, regrouping
from mldd.solvers import LBFGS, Adam, SchwarzAdaGrad, SchwarzLBFGS

NAMES = {  # as Anemoi names them
    "model.model.node_attributes.trainable_tensors.data.trainable": ("rest", "rest"),
    "model.model.encoder_graph_provider.data.trainable.trainable": ("encoder", "encoder"),
    "model.model.encoder.0.proc.node_mlp.mlp.0.weight": ("encoder", "encoder"),
    "model.model.processor_graph_provider.trainable.trainable": ("processor", "processor"),
    "model.model.processor.proc.0.emb_edges.mlp.2.bias": ("processor", "processor 0"),
    "model.model.processor.proc.11.conv.edge_mlp.mlp.0.weight": ("processor", "processor 11"),
    "model.model.decoder.0.node_data_extractor.mlp.4.weight": ("decoder", "decoder"),
}


def parameters(names=NAMES):
    return {name: nn.Parameter(torch.ones(k + 1)) for k, name in enumerate(names)}


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in ("encoder", "processor", "decoder")})


def test_parts_and_blocks():
    assert labels(NAMES, "parts") == [part for part, _ in NAMES.values()]
    assert labels(NAMES, "blocks") == [block for _, block in NAMES.values()]


def test_the_first_pattern_that_is_found_counts_and_the_rest_comes_last():
    named = parameters()
    found = grouped(named, {"edges": "emb_edges|edge_mlp", "processor": r"\.processor"})
    assert [group["name"] for group in found] == ["processor", "edges", "rest"]
    assert [len(group["params"]) for group in found] == [1, 2, 4]
    together = [p for group in found for p in group["params"]]
    assert {id(p) for p in together} == {id(p) for p in named.values()} and len(together) == len(named)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (
            {"a": "encoder", "b": r"encoder\.0"},
            "every pattern .* no earlier one finds, got none for b; .*node_attributes",
        ),
        ({"all": "."}, "two groups .* got all alone"),
    ],
)
def test_groups_that_are_none_are_refused(groups, words):
    with pytest.raises(ValueError, match=words):
        grouped(parameters(), groups)


@pytest.mark.parametrize("groups", ["layers", {}, {"a": "("}, {"a": 3}, None])
def test_what_names_no_groups_is_refused_when_the_callback_is_made(groups):
    pytest.importorskip("pytorch_lightning")
    with pytest.raises(ValueError, match="`groups` must be"):
        Subdomains(groups)


def test_the_rate_goes_into_the_solver_or_its_loss_is_said():
    net = network()
    made = optimizer(iter(net.parameters()), lr=0.25, solver=Adam(0.01))
    assert made.solver.lr == made.param_groups[0]["lr"] == 0.25
    with pytest.warns(UserWarning, match="LBFGS has no rate: `lr` 0.25 is shown, and not used"):
        optimizer(net.parameters(), lr=0.25, solver=LBFGS())
    with regrouping(lambda given: grouped(dict(net.named_parameters()), "parts")):
        made = optimizer(net.parameters(), lr=0.25, solver=partial(SchwarzAdaGrad, local_steps=2))
    assert made.solver.local.rate == 0.25
    assert [group["name"] for group in made.param_groups] == ["encoder", "processor", "decoder"]
    assert [len(s.indices) for s in made.solver.decomposition.subdomains] == [6, 6, 6]


def test_it_is_said_that_nobody_looks_at_clipping():
    net = network()
    with pytest.warns(UserWarning, match="nobody has looked whether gradients are clipped .*Recorder"):
        optimizer(net.parameters(), solver=LBFGS())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer(net.parameters(), solver=Adam())
        with regrouping(None):
            optimizer(net.parameters(), solver=LBFGS())


def test_what_is_no_optimizer_is_refused_in_one_line():
    net = network()
    with pytest.raises(ValueError, match=r"got betas, amsgrad; .*~training.optimization.optimizer.betas ~tr"):
        optimizer(net.parameters(), lr=0.1, solver=Adam(), betas=[0.9, 0.95], amsgrad=True)
    for solver in (SchwarzLBFGS, partial(SchwarzLBFGS, local_steps=2)):
        with pytest.raises(ValueError, match=r"SchwarzLBFGS needs groups .* got a single one; put mldd.anemoi.Sub"):
            optimizer(net.parameters(), lr=0.1, solver=solver)
    with pytest.raises(ValueError, match="`solver` must be a solver of mldd"):
        optimizer(net.parameters(), lr=0.1, solver="lbfgs")
    with (
        regrouping(lambda given: grouped(dict(net.named_parameters()), "parts")),
        pytest.raises(ValueError, match="gets parameters, got groups of them"),
    ):
        optimizer([{"params": list(net.parameters())}], solver=Adam())
