"""Trained operators: a kept model forecasts as the problem does, on a torus of any size; bad data are refused."""

import numpy as np
import pytest
import torch

from mldd.models import load, save
from mldd.problems.data import DataError
from tests.problems.operators.test_operator_learning import small, somewhere


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    problem = small(n=8)
    x = problem.initial(0) + 0.1 * somewhere(problem)
    folder = tmp_path_factory.mktemp("kept")
    save(folder / "model.pt", problem.module(x), {})
    return problem, x, load(folder)


def states(problem, numbers):
    return np.stack(problem.stream.states("validation", numbers), 1).reshape(-1, 2, 8, 8)


def test_forecasts_are_the_rollouts_of_the_problem(kept, tmp_path):
    problem, x, model = kept
    data = states(problem, range(4))
    np.savez(tmp_path / "states.npz", data)
    wanted = problem.rollouts.rollout(x)[1:].swapaxes(0, 1).reshape(4, 3, 8, 8)
    for given in (data, torch.from_numpy(data), tmp_path / "states.npz"):
        made = model.predict(given, leads="3")
        np.testing.assert_allclose(made["u"], wanted, atol=1e-12)
        assert made.notes == ()
    np.testing.assert_allclose(made["time"], 0.48 * np.arange(1, 4))
    np.testing.assert_allclose(model.predict(data)["u"], wanted[:, :1], atol=1e-12)


def test_another_size_is_another_torus(kept):
    """A field that repeats itself is forecast as one period of it is."""
    problem, _, model = kept
    data = states(problem, [0])
    twice = np.tile(data, (1, 1, 2, 2))
    np.testing.assert_allclose(model.predict(twice)["u"], np.tile(model.predict(data)["u"], (1, 1, 2, 2)), atol=1e-12)


def test_what_is_beyond_the_training_is_said_and_what_is_none_refused(kept):
    problem, _, model = kept
    data = states(problem, [0])
    beyond = data * np.array([3.0, 1.0])[:, None, None]
    assert "that of the training was in -1.6..1.6" in model.predict(beyond).notes[0]
    for wrong, said in (
        (data[0], r"must be numbers of shape \(b, 2, n, n\)"),
        (data * np.nan, "must be finite, got 128 numbers"),
        (-data, "the diffusivity must be > 0"),
    ):
        with pytest.raises(DataError, match=said):
            model.predict(wrong)
    with pytest.raises(ValueError, match="`leads` must be a whole number"):
        model.predict(data, leads="0")
