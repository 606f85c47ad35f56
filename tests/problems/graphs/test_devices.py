"""Everything of a problem lives on the device asked for: shown on torch's device without memory, ``meta``.

What reads values cannot run there and is replaced: checks of decompositions, and sparse products.
"""

import pytest
import torch

import mldd
import mldd.problems.graphs.node_classification
from mldd.algebra import Decomposition, SharedDecomposition, sampled
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import NodeClassification, SubdomainNetworks
from mldd.problems.nets import Sparse
from mldd.ranks import Communicator, device

META = torch.device("meta")
SET_UP = ("net",)  # layouts of networks: numbers that are used while a problem is set up


def tensors(thing, path="", seen=None):
    """Yield path and tensor for all that is reachable from objects of this package."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, NodeClassification):
        return
    seen[id(thing)] = thing
    if isinstance(thing, torch.Tensor):
        yield path, thing
    elif isinstance(thing, dict):
        for name, value in thing.items():
            if name not in SET_UP:
                yield from tensors(value, f"{path}.{name}", seen)
    elif isinstance(thing, list | tuple):
        for k, value in enumerate(thing):
            yield from tensors(value, f"{path}[{k}]", seen)
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("mldd"):
        yield from tensors(vars(thing), path, seen)
    elif getattr(thing, "__closure__", None):
        yield from tensors([cell.cell_contents for cell in thing.__closure__], f"{path}()", seen)


def product(self, dense):
    """Stand in for a sparse product, with its shape, dtype and derivative."""
    assert dense.device == META and self.matrix.device == self.transposed.device == self.order.device == META
    return dense.new_empty(self.shape[0], *dense.shape[1:]) + 0 * dense.sum()


@pytest.fixture
def meta(monkeypatch):
    monkeypatch.setattr(mldd.problems.graphs.node_classification, "pick_device", lambda *_: META)
    monkeypatch.setattr(Sparse, "__matmul__", product)
    for kind in (Decomposition, SharedDecomposition):
        monkeypatch.setattr(kind, "__post_init__", lambda _: None)
    monkeypatch.setattr(Decomposition, "runs", None)
    monkeypatch.setattr(torch, "equal", lambda *_: True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NodeClassification, {}),
        (NodeClassification, {"model": "gin", "local": "own"}),
        (NodeClassification, {"model": "sage", "coarsen": "graph+width+depth+data", "evaluate": "float32"}),
        (NodeClassification, {"subdomains": "both"}),
        (NodeClassification, {"subdomains": "parameters", "coarsen": "width", "dtype": "float32"}),
        (SubdomainNetworks, {}),
        (SubdomainNetworks, {"coarse": "whole", "evaluate": "float32"}),
    ],
)
def test_all_tensors_are_on_the_device(meta, kind, options):
    data = sbm(nodes=120, classes=4, features=6)
    p = mldd.problem(kind, name=data, **{"hidden": 4, "dropout": 0.2, "clusters": 20, "layers": 3, **options})
    x = p.initial(0)
    f, hierarchy, d = p.objective(), p.hierarchy(1 if kind is SubdomainNetworks else 2), p.decomposition(3, 1)
    g = sampled(f, 1).gradient(x)
    f.value_and_gradient(x)
    for fine, coarse in zip(hierarchy.levels, hierarchy.levels[1:], strict=False):
        y = coarse.transfer.inject(x)
        e = coarse.objective.gradient(y) + coarse.transfer.restrict(fine.objective.gradient(x))
        assert coarse.transfer.prolong(e).device == META
    models = d.models(f, x, g)
    step = models.value_and_gradient(d.gather(x))[1] * d.valid
    made = [x, g, step, d.scatter(step), p.logits(x), p._objective, sampled(f, 1), hierarchy, d, models]
    found = dict(tensors(made))
    assert len(found) > 40
    assert not {path: t.device for path, t in found.items() if t.device != META}


def test_ranks_map_to_gpus(monkeypatch):
    class Rank:
        def Get_rank(self):  # noqa: N802
            return 5

        def Get_size(self):  # noqa: N802
            return 8

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "PALS_LOCAL_RANKID"):
        monkeypatch.delenv(name, raising=False)
    assert device("cuda", Communicator(Rank())) == torch.device("cuda:1")
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert device("auto", Communicator(Rank())) == torch.device("cuda:2")
    assert device("cuda:3", Communicator(Rank())) == torch.device("cuda:3")
