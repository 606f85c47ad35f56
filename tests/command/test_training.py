"""Training in one call from Python, and networks of one's own on the command line: the same results."""

import json
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import mldd
from mldd.algebra import loaded
from mldd.command.names import problem_spec
from mldd.problems.data import load_graph
from mldd.solvers import Adam
from tests.problems.modules.one_graph.test_graph_problem import NETS, data

geometric = pytest.importorskip("torch_geometric")

NET = """
    import torch
    from torch import nn
    from torch_geometric.nn import GCNConv

    class Net(nn.Module):
        def __init__(self, in_channels, num_classes, hidden=8, dropout=0.0):
            super().__init__()
            self.first, self.last = GCNConv(in_channels, hidden), GCNConv(hidden, num_classes)
            self.dropout = dropout

        def forward(self, x, edge_index, edge_weight=None):
            x = torch.tanh(self.first(x, edge_index, edge_weight))
            return self.last(nn.functional.dropout(x, self.dropout, self.training), edge_index, edge_weight)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    torch.save(geometric.data.Data(**data()), tmp_path / "graph.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(name="gcn"):
    torch.manual_seed(0)
    return NETS[name]()


@pytest.mark.parametrize(("solver", "more"), [("adam", {}), ("ml-lbfgs", {"levels": 2}), ("dd-adagrad", {"parts": 4})])
def test_a_network_and_a_graph_are_all_that_is_needed(solver, more):
    module = net()
    start = [p.detach().clone() for p in module.parameters()]
    given = geometric.data.Data(**data())
    run = mldd.train(module, given, solver=solver, steps=8, **more)
    assert run.model is module and not all(map(torch.equal, start, module.parameters()))
    assert run.history.records[-1].step == run.result.record.step == 8
    with torch.no_grad():
        expected = module.eval()(given.x, given.edge_index, given.edge_weight, given.edge_attr)
    torch.testing.assert_close(run.predict(), expected)
    right = (run.predict(given).argmax(1) == given.y)[given.test_mask].double().mean()
    assert run.metrics["test_accuracy"] == pytest.approx(float(right))


def test_it_is_the_loop_with_that_solver():
    run = mldd.train(net("by hand"), data(), solver="adam:lr=0.02", steps=5)
    p = mldd.problem(type(run.problem), net=net("by hand"), data=data())
    result = mldd.minimise(p.objective(), p.initial(0), Adam(0.02), stop=mldd.Stop(5))
    torch.testing.assert_close(run.x, result.x)


def test_a_folder_gets_what_the_command_line_writes_and_the_best_is_kept(tmp_path):
    run = mldd.train(net(), data(), steps=6, out=tmp_path / "run", validate_every=2, keep="best")
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["steps"] == 6 and content["details"]["task"] == "classification"
    again = mldd.load(tmp_path / "run", net())
    assert all(map(torch.equal, again.state_dict().values(), run.model.state_dict().values()))
    with pytest.raises((ValueError, OSError), match="overwrite"):
        mldd.train(net(), data(), steps=1, out=tmp_path / "run")
    shown = repr(run)
    assert shown.startswith("Training\n  status ") and len(shown.splitlines()) < 25
    assert f"train loss {run.metrics['train_loss']:.4g}" in shown and "model.pt" in shown
    assert "<table" in run._repr_html_()


def test_a_training_is_checkpointed_and_goes_on(tmp_path):
    file = tmp_path / "saved"
    mldd.train(net("by hand"), data(), steps=4, checkpoint=file)
    later = mldd.train(net("by hand"), data(), steps=9, resume=str(file))
    whole = mldd.train(net("by hand"), data(), steps=9)
    assert later.result.record.step == 9 and torch.equal(later.x, whole.x)
    assert mldd.train("obstacle", n=7, dtype="float32", solver="adagrad", steps=1).x.dtype == torch.float32


def test_problems_by_name_and_made_ones_are_solved():
    by_name = mldd.train("obstacle", n=15, solver="adagrad", steps=3)
    made = mldd.train(mldd.problem("obstacle:n=15"), solver="adagrad", steps=3)
    assert torch.equal(by_name.x, made.x)
    with pytest.raises(ValueError, match="does not have"):
        _ = by_name.model


class Plain:
    """A problem that does not derive from that of mldd."""

    def objective(self):
        return mldd.problem("quadratic:n=4").objective()

    def initial(self, seed=0):
        return mldd.problem("quadratic:n=4").initial(seed)


class Unseeded(mldd.Problem):
    objective = Plain.objective

    def initial(self):
        return Plain().initial()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mldd.train(net()), "a network needs `data`"),
        (lambda: mldd.train("obstacle", data()), "`data` go with a network"),
        (lambda: mldd.train(mldd.problem("obstacle"), n=3), "cannot be set, got n"),
        (lambda: mldd.train(net(), data(), steps=1, overlop=1), "no key 'overlop'"),
        (lambda: mldd.train(net(), data(), options={"stepps": 1}), "no option 'stepps'"),
        (lambda: mldd.train(net(), data(), options={"seeds": [1, 2]}), "no option 'seeds'"),
        (lambda: mldd.train(net(), data(), parts=4), "--parts is of no use to solver adam"),
        (lambda: mldd.train(net(), data(), dtype="float64"), "no key 'dtype'"),
        (lambda: mldd.train(net(), data(), solver="addam"), "did you mean adam"),
        (lambda: mldd.train(net(), data(), lr=0.1), r"no key 'lr'; .* behind their name: solver=\"adam:lr=0.1\""),
        (lambda: mldd.train(type(net()), data()), r"got the class \w+; write \w+\(...\)"),
        (lambda: mldd.train(data(), net()), "go with a network .* got them with .*; leave them out, or swap the two"),
        (lambda: mldd.train(net(), data(), steps=2.5), "`steps` must be a whole number, got 2.5"),
        (lambda: mldd.train(net(), data(), steps="5"), "`steps` must be a whole number, got '5'"),
        (lambda: mldd.train(net(), data(), options={"max_seconds": "5"}), "`max_seconds` must be a number, got '5'"),
        (lambda: mldd.train(net(), data(), steps=1, norm=3), "`norm` must be one of inf, 2, got 3"),
        (lambda: mldd.train(net(), data(), steps=1, prices="cheap"), "`prices` must be one of estimated, measured"),
        (lambda: mldd.train(net(), data(), steps=1, keep="bets"), "`keep` must be last, best or best:NAME, got 'bets'"),
        (lambda: mldd.train(net(), data(), steps=1, quiet="no"), "`quiet` must be True or False, got 'no'"),
        (lambda: mldd.train(net(), data(), steps=1, log="csvv", out="o"), "must be one of csv .*, got 'csvv'"),
        (lambda: mldd.train(net(), data(), steps=1, seed=1.5), "`seed` must be a whole number, got 1.5"),
        (lambda: mldd.train(Plain(), steps=1), r"must derive from mldd.Problem, got Plain; write class Plain\(mldd"),
        (lambda: mldd.train(Unseeded(), steps=1), r"`initial` of Unseeded must take a seed; write def initial"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_on_the_command_line_is_that_of_python(run, folder):
    line = "train graph.pt:model=net.py:Net,hidden=4,clusters=20 --solver ml-lbfgs --levels 2 --steps 4 --quiet --out a"
    code, _, error = run(line)
    assert code == 0, error
    content = json.loads((folder / "a" / "result.json").read_text())
    assert content["details"]["arguments"] == ["x", "edge_index", "edge_weight"]
    assert content["details"]["notes"] == ["not used: edge_attr"]
    spec = problem_spec("graph.pt:model=net.py:Net,hidden=4,clusters=20")
    again = mldd.train(spec.make(), solver="ml-lbfgs", levels=2, steps=4)
    assert content["loss"] == pytest.approx(float(again.result.record.value), rel=1e-6)
    assert {p.shape for p in again.model.parameters()} == {(4, 6), (4,), (3, 4), (3,)}
    code, out, _ = run("list graph.pt:model=net.py:Net")
    assert code == 0 and "  network.hidden : whole number, default 8" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph.pt:model=net.py:Net,hiden=4", "no key 'hiden' (did you mean hidden?)"),
        ("graph.pt:model=net.py:Not", "Not"),
        ("nowhere.pt:model=net.py:Net", "nowhere.pt"),
    ],
)
def test_wrong_words_are_one_line(run, folder, text, message):
    code, _, error = run(f"train {text} --solver adam --steps 1")
    assert code == 2 and error.count("\n") == 1 and message in error


KINDS = {
    "directed": {},
    "regression": {"y": torch.linspace(-1, 1, 150)},
    "several numbers": {"y": torch.linspace(-1, 1, 300).reshape(150, 2)},
    "several labels": {"y": (torch.arange(450).reshape(150, 3) % 2).float()},
    "no masks": {"train_mask": None, "val_mask": None, "test_mask": None},
    "some unlabelled": {"y": torch.arange(150) % 4 - 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_are_used_rightly(run, folder, kind):
    given = {key: value for key, value in {**data(), **KINDS[kind]}.items() if value is not None}
    torch.save(geometric.data.Data(**given), "kind.pt")
    p = problem_spec("kind.pt:model=net.py:Net,dtype=float64").make()
    x = p.initial(0)
    y, train = given["y"], given.get("train_mask", torch.ones(150, dtype=torch.bool))
    train = train & (y >= 0) if not y.dtype.is_floating_point else train
    out, y = p.problem.outputs(x)[train], y[train]
    loss = {
        "regression": lambda: nn.functional.mse_loss(out[:, 0], y.double()),
        "several numbers": lambda: nn.functional.mse_loss(out, y.double()),
        "several labels": lambda: nn.functional.binary_cross_entropy_with_logits(out, y.double()),
    }.get(kind, lambda: nn.functional.cross_entropy(out, y))
    torch.testing.assert_close(p.objective().value(x), loss())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": None}, "must have features x"),
        ({"x": torch.full((150, 6), torch.nan)}, "`x` must be finite, got another value at node 0"),
        ({"y": None}, "must have labels y of the nodes"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_words(run, folder, more, message):
    given = {key: value for key, value in {**data(), **more}.items() if value is not None}
    torch.save(geometric.data.Data(**given), "kind.pt")
    code, _, error = run("train kind.pt:model=net.py:Net --solver adam --steps 1")
    assert code == 2 and error.count("\n") == 1 and message in error


def test_a_size_that_the_data_do_not_say_is_a_key(run, folder):
    pairs = torch.arange(40).reshape(2, 20)
    given = {key: v for key, v in data().items() if key != "y"}
    given |= {"edge_label_index": pairs, "edge_label": (torch.arange(20) % 2).float()}
    torch.save(geometric.data.Data(**given), "links.pt")
    code, _, error = run("train links.pt:model=net.py:Net --solver adam --steps 1")
    assert code == 2 and "needs `num_classes`; write num_classes=VALUE" in error
    p = problem_spec("links.pt:model=net.py:Net,num_classes=5").make()
    z = p.problem.outputs(p.initial(0))
    assert z.shape == (150, 5)
    expected = nn.functional.binary_cross_entropy_with_logits((z[pairs[0]] * z[pairs[1]]).sum(1), given["edge_label"])
    torch.testing.assert_close(p.objective().value(p.initial(0)), expected)


def test_an_archive_with_the_names_of_torch_geometric_is_the_same_graph(run, folder):
    given = {key: v for key, v in data().items() if key != "edge_attr"}
    torch.save(geometric.data.Data(**given), "same.pt")
    np.savez("same.npz", **{key: v.numpy() for key, v in given.items()})
    a, b = (load_graph(f"same.{suffix}") for suffix in ("pt", "npz"))
    assert a.digest == b.digest
    assert {note for note in a.notes if "one way" in note} == {note for note in b.notes if "one way" in note} != set()


def test_loops_and_doubles_of_edges_are_said(run, folder):
    given = data()
    more = torch.tensor([[0, 3, 3, 4], [0, 3, 4, 3]])
    given["edge_index"] = torch.cat([given["edge_index"], more], 1)
    given = {key: v for key, v in given.items() if not key.startswith("edge_") or key == "edge_index"}
    torch.save(geometric.data.Data(**given), "loops.pt")
    notes = " ".join(load_graph("loops.pt").notes)
    assert (
        "2 edges from a node to itself were left out" in notes and "edges were there before: they count once" in notes
    )


GRAPHS = """
import torch
from torch_geometric.nn import GCNConv, global_mean_pool


class Net(torch.nn.Module):
    def __init__(self, inputs, classes, hidden=4):
        super().__init__()
        self.first, self.norm = GCNConv(inputs, hidden), torch.nn.BatchNorm1d(hidden)
        self.last = torch.nn.Linear(hidden, classes)

    def forward(self, x, edge_index, batch):
        return self.last(global_mean_pool(self.norm(self.first(x, edge_index)).relu(), batch))
"""


@pytest.fixture
def many(folder):
    """A file with graphs, one with the same in three lists, one as a data set writes it, one without labels."""
    (folder / "graphs.py").write_text(GRAPHS)
    generator = torch.Generator().manual_seed(0)
    made = [
        geometric.data.Data(
            x=torch.randn(4 + i % 3, 5, generator=generator) + i % 2,
            edge_index=torch.randint(0, 4, (2, 9), generator=generator),
            y=torch.tensor([i % 2]),
        )
        for i in range(30)
    ]
    torch.save(made, "many.pt")
    torch.save({"train": made[:20], "validation": made[20:25], "test": made[25:]}, "lists.pt")
    torch.save(geometric.data.InMemoryDataset.collate(made), "processed.pt")
    torch.save([geometric.data.Data(x=g.x, edge_index=g.edge_index) for g in made], "unlabelled.pt")
    return made


def test_many_graphs_on_the_command_line_are_those_of_python(run, folder, many):
    line = ":model=graphs.py:Net,hidden=6 --solver adam --steps 3 --quiet --out"
    for name in ("many", "processed"):
        assert run(f"train {name}.pt{line} {name}") == (0, "", "")
        content = json.loads((folder / name / "result.json").read_text())
        assert content["details"]["graphs"] == 30 and content["details"]["task"] == "classification"
    kept = [torch.load(f"{name}/model.pt", weights_only=True)["state_dict"] for name in ("many", "processed")]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    code, said, _ = run("predict many unlabelled.pt:model=graphs.py:Net,hidden=6,classes=2 --out p.npz")
    assert code == 0 and "output (graph 30, output 2)" in said
    net = loaded("graphs.py:Net", "class")(5, 2, 6)
    net.load_state_dict(kept[0])
    batch = geometric.data.Batch.from_data_list(many)
    expected = net.eval()(batch.x, batch.edge_index, batch.batch).detach().numpy()
    np.testing.assert_allclose(np.load("p.npz")["output"], expected, rtol=1e-5, atol=1e-6)


def test_lists_of_graphs_are_validated_on_and_decomposed(run, folder, many):
    line = (
        "train lists.pt:model=graphs.py:Net --solver dd-adagrad --parts 3 --steps 4 --validate-every 2 --quiet --out a"
    )
    assert run(line) == (0, "", "")
    metrics = json.loads((folder / "a" / "result.json").read_text())["metrics"]
    assert {
        f"{part}_{what}" for part in ("train", "validation", "test") for what in ("loss", "accuracy", "auc")
    } <= set(metrics)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train many.pt --solver adam", "expected one graph, got 30; save one of them"),
        (
            "train many.pt:model=graphs.py:Net,labels=all --solver adam",
            "`labels` is for one graph, got 'all' with several",
        ),
        ("train unlabelled.pt:model=graphs.py:Net --solver adam", "graphs must have labels y"),
        ("predict {tmp} unlabelled.pt:model=graphs.py:Net --out p.csv", "needs `classes`; write classes=VALUE"),
        ("predict {tmp} many.pt:model=graphs.py:Net --out p.csv", "must have a model.pt, got none"),
    ],
)
def test_many_graphs_that_cannot_be_used_are_refused_in_words(run, folder, many, line, message):
    code, _, error = run(line.format(tmp=folder))
    assert code == 2 and error.count("\n") == 1 and message in error


def test_what_is_not_used_is_shown_in_python_too():
    given = {**data(), "sign_of_edges": torch.ones(3)}
    assert "not used: sign_of_edges" in repr(mldd.train(net("by hand"), given, steps=1)).replace("edge_attr, ", "")


class Told(Plain, mldd.Problem):
    """A problem whose metrics and details cannot be told."""

    def metrics(self, x):
        return {"size": len(x), "entries": x}

    def details(self):
        raise RuntimeError("nobody knows")


def test_details_and_metrics_that_fail_cost_themselves():
    with pytest.warns(UserWarning) as seen:
        found = mldd.train(Told(), steps=1, solver="lbfgs")
    words = [str(w.message) for w in seen]
    assert any("entries must be one number, got Tensor" in text for text in words)
    assert any("the details of the problem could not be told: RuntimeError: nobody knows" in text for text in words)
    assert found.result.record.step == 1


def test_a_network_is_trained_in_place():
    """The parameters are those of the result without anybody asking for the model."""
    module = net()
    found = mldd.train(module, data(), steps=3)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in module.parameters()]), found.x)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(data()["x"].shape[1], 3)

    def forward(self, x, edge_index, scale=None):
        return self.map(x if scale is None else x * scale)


def test_predictions_on_another_graph_take_the_fields_of_the_training():
    plain = data()
    scaled = {**plain, "scale": torch.full((len(plain["x"]), 1), 2.0)}
    found = mldd.train(Scaled(), scaled, steps=1)
    with pytest.raises(ValueError, match="must have x, edge_index, scale as in the training, .* add scale"):
        found.predict(plain)
    other = mldd.train(Scaled(), plain, steps=1)
    torch.testing.assert_close(other.predict(scaled), other.model(plain["x"], plain["edge_index"]).detach())


def test_predictions_on_the_command_line_take_the_fields_of_the_training(run, folder):
    plain = geometric.data.Data(**data())
    del plain.edge_weight
    torch.save(plain, folder / "plain.pt")
    assert run("train graph.pt:model=net.py:Net --solver adam --steps 1 --out weighted --quiet")[0] == 0
    code, _, said = run("predict weighted plain.pt:model=net.py:Net --out p.npz")
    assert code == 2 and "must have x, edge_index, edge_weight as in the training" in said and said.count("\n") == 1
    assert run("train plain.pt:model=net.py:Net --solver adam --steps 1 --out without --quiet")[0] == 0
    for name in ("graph", "plain"):
        assert run(f"predict without {name}.pt:model=net.py:Net --out {name}.npz")[0] == 0
    assert np.array_equal(np.load("graph.npz")["output"], np.load("plain.npz")["output"])


def test_a_checkpoint_of_another_network_or_loss_is_refused(tmp_path):
    """Layers of the same shapes with another function between them, or with another loss, are another run."""
    x, y = torch.randn(20, 4), torch.arange(20) % 3

    def run(between, loss, steps):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), between, nn.Linear(8, 3))
        path = tmp_path / "c"
        return mldd.train(module, (x, y), loss=loss, steps=steps, options={"checkpoint": path, "resume": "auto"})

    ce = nn.functional.cross_entropy
    run(nn.Tanh(), ce, 2)
    for between, loss in ((nn.ReLU(), ce), (nn.Tanh(), nn.CrossEntropyLoss())):
        with pytest.raises(FileExistsError, match=r"another run \(network Sequential .* in place of Sequential"):
            run(between, loss, 4)
    assert run(nn.Tanh(), ce, 4).result.record.step == 4
