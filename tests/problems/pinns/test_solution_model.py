"""Trained physics-informed networks: u of the problem at any points, and what is refused."""

import numpy as np
import pytest
import torch

from mldd.models import load, save
from mldd.problems.data import DataError
from tests.helpers import pinn


@pytest.mark.parametrize(
    "options",
    [
        {"name": "poisson1d", "frequency": 2.0},
        {"name": "poisson1d", "boundary": "soft", "kind": "residual", "depth": 3, "width": 5},
        {"name": "klein-gordon", "depth": 3, "width": 5, "points": 50, "dtype": "float32"},
        {"name": "klein-gordon", "model": "windows", "count": 2, "coarse": True, "points": 200, "width": 4},
    ],
    ids=str,
)
def test_predictions_are_those_of_the_problem(tmp_path, options):
    problem = pinn(**options)
    x = problem.initial(3) * 1.1
    save(tmp_path / "model.pt", problem.module(x), {})
    model = load(tmp_path)
    points, unit = problem.equation.scaled(torch.rand(7, problem.equation.dim).double()), options["name"]
    np.savez(tmp_path / "points.npz", points.numpy())
    for given in (points, points.numpy(), tmp_path / "points.npz"):
        np.testing.assert_array_equal(model.predict(given)["u"], problem.predict(x, points).double().numpy())
    made = model.predict(unit)
    found = np.linalg.norm(made["u"] - problem.test[1].numpy()) / np.linalg.norm(problem.test[1].numpy())
    assert found == pytest.approx(problem.metrics(x)["relative_l2"], rel=1e-5)


def test_names_and_values_of_a_dense_network_are_those_of_torch(tmp_path):
    problem = pinn("poisson1d", boundary="soft", depth=3, width=4)
    model = problem.module(problem.initial(1))
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    ).double()
    net.load_state_dict({f"{2 * int(k.split('.')[1])}.{k.split('.')[2]}": v for k, v in model.state_dict().items()})
    points = torch.linspace(0, 1, 9).double()[:, None]
    np.testing.assert_allclose(model.predict(points)["u"], net(points).detach().numpy()[:, 0], atol=1e-12)


def test_windows_have_names():
    problem = pinn("klein-gordon", "windows", count=2, coarse=True, points=200, depth=2, width=3)
    names = list(problem.module(problem.initial()).state_dict())
    assert names[0] == "windows.0.layers.0.weight" and names[-1] == "domain.layers.1.bias"
    assert len(names) == 3 * 4, "two windows and the whole domain"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((3, 2)), r"points must be numbers of shape \(m, 1\), got float64 of shape \(3, 2\)"),
        (np.array([[0.5], [1.5]]), r"must lie in the box \(0.0,\)..\(1.0,\) of poisson1d, got 1 outside of it"),
        (np.array([[np.nan]]), "got 1 outside of it"),
        ("burgers", "data must be poisson1d or a file .npz with one array, got 'burgers'"),
    ],
)
def test_other_points_are_refused(points, words):
    problem = pinn("poisson1d")
    with pytest.raises(DataError, match=words) as error:
        problem.module(problem.initial()).predict(points)
    assert "\n" not in str(error.value)
