"""Solvers of the AdaGrad kind as Python makes them, without a rate: on networks they end far below their start."""

from dataclasses import replace

import pytest
import torch

from mldd.loop import Stop, minimise
from mldd.problems.images import Digits
from mldd.ranks import SERIAL
from mldd.solvers import AdaGrad, MultilevelAdaGrad, SchwarzAdaGrad
from mldd.solvers.adagrad import SCALED
from tests.helpers import OneOfFour

SOLVERS = {
    "adagrad": lambda p: AdaGrad(),
    "multilevel": lambda p: MultilevelAdaGrad(p.hierarchy(2)),
    "subdomains": lambda p: SchwarzAdaGrad(p.decomposition(2, 0)),
    "both": lambda p: SchwarzAdaGrad(p.decomposition(2, 0), p.hierarchy(2)),
}


def digits(subdomains):
    pytest.importorskip("sklearn")
    return Digits(hidden="16-8", samples=200, subdomains=subdomains)


def graph(subdomains):
    pytest.importorskip("torch_geometric")
    from mldd.problems.modules import Division
    from tests.problems.modules.one_graph.test_graph_models import some

    return some(division=Division({"data": "graph", "parameters": "layers"}[subdomains]))[0]


@pytest.mark.parametrize("subdomains", ["parameters", "data"])
@pytest.mark.parametrize("make", [digits, graph])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_network_is_trained_without_a_rate(name, make, subdomains):
    problem = make(subdomains)
    f, x = problem.objective(), problem.initial(0)
    result = minimise(f, x.clone(), SOLVERS[name](problem), stop=Stop(25))
    assert float(f.value(result.x)) < 0.6 * float(f.value(x))
    assert SCALED in result.state.notes
    assert bool(torch.isfinite(result.x).all())


def test_the_rate_is_that_of_all_unknowns_on_every_level_and_part():
    problem = digits("parameters")
    f, x = problem.objective(), problem.initial(0)
    decomposition = problem.decomposition(2, 0)
    one = replace(decomposition, local=range(1, 2))  # as a rank has it that holds the second part alone
    for held, comm in ((decomposition, SERIAL), (one, OneOfFour())):
        state = SchwarzAdaGrad(held, problem.hierarchy(2), comm=comm).init(f, x)
        states = [*state.levels.levels, *state.sweep.local]
        assert len(states) == 3
        assert [s.scale for s in states] == pytest.approx([0.25 * float(x.square().mean().sqrt())] * 3)
