"""Trained recognisers of samples: the outputs of the problem, and what is refused."""

import numpy as np
import pytest
import torch

from mldd.models import load, save
from mldd.problems.data import DataError, load_digits_images
from mldd.problems.images import Digits


@pytest.fixture
def kept(tmp_path):
    problem = Digits(hidden="8-6", samples=50)
    x = problem.initial(2) * 2
    save(tmp_path / "model.pt", problem.module(x), {})
    return problem, x, load(tmp_path)


def test_predictions_are_those_of_a_plain_torch_network(kept, tmp_path):
    problem, x, model = kept
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 10)
    ).double()
    net.load_state_dict({f"{2 * int(k.split('.')[1])}.{k.split('.')[2]}": v for k, v in model.state_dict().items()})
    images = load_digits_images()[0]
    wanted = torch.softmax(net(images), 1).detach().numpy()
    np.savez(tmp_path / "own.npz", images.numpy())
    for data in ("digits", images, images.numpy(), tmp_path / "own.npz"):
        made = model.predict(data)
        np.testing.assert_allclose(made["probability"], wanted, atol=1e-12)
        assert (made["predicted_class"] == wanted.argmax(1)).all() and made.notes == ()
    right = made["predicted_class"] == load_digits_images()[1].numpy()
    found = problem.metrics(x)
    both = (50 * found["train_accuracy"] + 1747 * found["test_accuracy"]) / 1797
    assert right.mean() == pytest.approx(both)


def test_other_scales_are_said_and_other_inputs_refused(kept, tmp_path):
    model = kept[2]
    assert "inputs in 0..16, those of the training were in 0..1" in model.predict(16 * np.eye(64)).notes
    (tmp_path / "text.npz").write_text("x")
    np.savez(tmp_path / "two.npz", a=np.eye(64), b=np.eye(64))
    for data, words in (
        (np.eye(63), r"shape \(m, 64\) as in the training, got float64 of shape \(63, 63\)"),
        (np.full((2, 64), np.nan), "samples must be finite, got 128"),
        ("mnist", "must be digits or a file .npz of samples, got 'mnist'"),
        (tmp_path / "text.npz", "expected a .npz of plain arrays"),
        (tmp_path / "two.npz", "expected one array, or one called x, got a, b"),
    ):
        with pytest.raises(DataError, match=words) as error:
            model.predict(data)
        assert "\n" not in str(error.value)
