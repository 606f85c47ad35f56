"""Files of models: what is in them, who can read them, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mldd
from mldd import checkpoints
from mldd.loop import History, State
from mldd.models import Model, ModelError, load, save
from mldd.problems.graphs import NodeModel
from mldd.problems.nets import GraphNet
from tests.helpers import Evil, user_arrays


def some(kind="sage", **more):
    net = GraphNet(kind, (5, 4, 3), **more)
    return NodeModel(net, net.initial(1), "own")


def test_a_file_is_data_that_torch_reads_alone(tmp_path):
    model = some()
    save(tmp_path / "model.pt", model, {"problem": "own", "seed": 3, "metrics": {"test_accuracy": 0.5}})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["kind"] == "nodes" and content["about"]["seed"] == 3
    assert list(content["state_dict"]) == [name for name, _ in model.named_parameters()]
    assert list(content["state_dict"])[0] == "layers.0.self" and content["config"]["network"]["widths"] == [5, 4, 3]
    again = mldd.load(tmp_path)
    assert again.about["metrics"] == {"test_accuracy": 0.5} and not again.training
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter) and parameter.dtype == torch.float64
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_process_without_the_data_of_the_training_predicts(tmp_path):
    model = some("gat", heads=2)
    save(tmp_path / "model.pt", model, {})
    np.savez(tmp_path / "other.npz", **{k: v for k, v in user_arrays(40, seed=2).items() if k != "labels"})
    program = "import mldd, sys; print(mldd.load('model.pt').predict('other.npz')['probability'].tolist())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.array(eval(done.stdout)), model.predict(tmp_path / "other.npz")["probability"], rtol=1e-12
    )


def test_a_module_of_ones_own_gets_its_parameters(tmp_path):
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save(tmp_path / "own.pt", net, {})
    with pytest.raises(ModelError, match="got a module of yours; make the module and give it: mldd.load"):
        load(tmp_path / "own.pt")
    assert load(tmp_path / "own.pt", other) is other and torch.equal(other.weight, net.weight)
    with pytest.raises(ModelError, match="must have the parameters of .*own.pt, got others") as error:
        load(tmp_path / "own.pt", nn.Linear(4, 2))
    assert "\n" not in str(error.value)


def test_what_is_no_model_is_refused_in_one_line(tmp_path):
    proof, file = tmp_path / "proof", tmp_path / "bad.pt"
    save(tmp_path / "good.pt", some(), {})
    whole = (tmp_path / "good.pt").read_bytes()
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    np.savez(tmp_path / "solution.npz", x=np.ones(3))

    def refused(words, kind=ModelError, path=file):
        with pytest.raises(kind, match=words) as error:
            load(path)
        assert "\n" not in str(error.value)

    for given, words in (
        (Evil(proof), "it asks for"),
        ({"a": torch.ones(2)}, "must be a model written by mldd"),
        ({**content, "config": 3}, "with a broken config"),
        ({**content, "config": {}}, "must have the configuration of a nodes model"),
        ({**content, "kind": "trees"}, "the kind 'trees', which is not known here"),
    ):
        torch.save(given, file)
        refused(words)
    assert not proof.exists()
    checkpoints.save(file, x=torch.zeros(2), state=State(), history=History(), meta={})
    refused("must be a model, got a checkpoint; give the model.pt")
    file.write_bytes(whole[:200])
    refused("must be a whole model of mldd, but it cannot be read")
    refused("must be a file or the folder of a run, got none", FileNotFoundError, tmp_path / "nowhere")
    refused("holds the solution of a problem without a network", path=tmp_path)
    (tmp_path / "solution.npz").unlink()
    refused("must have a model.pt, got none", FileNotFoundError, tmp_path)


def test_a_file_does_not_say_which_code_is_run(tmp_path):
    (tmp_path / "layer.py").write_text("open('ran', 'w')\n")
    save(tmp_path / "model.pt", some(), {})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["config"]["network"]["kind"] = f"{tmp_path}/layer.py:Layer"
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="the model must have layers gcn"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_its_methods_says_which():
    for call in (lambda m: m.config(), lambda m: type(m).of({}), lambda m: m.predict(None)):
        with pytest.raises(NotImplementedError, match=r"Model needs `"):
            call(Model())
