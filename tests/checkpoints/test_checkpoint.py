"""Checkpoints: a resumed run is the uninterrupted one, and a file that is none is refused in one line."""

import math
import os
import pickle
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mldd.checkpoints import load, save
from mldd.loop import CheckpointError, Cost, History, Record, State, Status, Stop, is_resumable, minimise, restore
from mldd.loop.monitor import FIELDS
from mldd.solvers import LBFGS, AdaGrad, Adam, Sgd, TorchAdaGrad
from tests.helpers import quadratic

META = {"problem": "bowl:n=3", "solver": "adam:lr=0.1", "seed": 0, "size": 3, "levels": [1, 2], "mldd": "0.1.0"}


def history(step=0):
    return History([Record(step, 0, 1 / 3, math.nan, 3, 4, Cost(1, 1.5, 1.5, 2, 3, 2**40, seconds=0.1))])


@dataclass
class Inner(State):
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))


@dataclass
class Outer(State):
    """One field of every kind that a state may have."""

    levels: list[Inner] = field(default_factory=lambda: [Inner(), Inner()])
    pair: tuple[int, float] = (1, 2.0)
    memory: deque = field(default_factory=lambda: deque(maxlen=4))
    buffer: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    momentum: torch.Tensor | None = None
    coarse: Inner | None = None
    more: list[Inner] = field(default_factory=list)
    table: dict = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)
    name: str = ""
    found: bool = False


def full():
    state = Outer(step=7, status=Status.stalled, pair=(3, 4.5), name="x", found=True)
    state.levels[1].weights = torch.tensor([1.0, math.nan], dtype=torch.float64)
    state.levels[1].step = 5
    state.memory.extend([torch.ones(2), torch.zeros(2)])
    state.buffer = torch.arange(3)
    state.momentum = torch.full((3,), 0.1)
    state.coarse = Inner(accepted=3)
    state.more = [Inner(rejected=1)]
    state.table = {"a": 1, 2: torch.ones(1)}
    state.generator.manual_seed(3)
    torch.rand(5, generator=state.generator)
    return state


def write(path, state=None, **changes):
    state = Inner() if state is None else state
    save(path, **({"x": torch.ones(3), "state": state, "history": history(state.step), "meta": META} | changes))
    return path


def test_every_kind_of_field_comes_back(tmp_path):
    state = full()
    saved = load(write(tmp_path / "c.pt", state))
    back = saved.state(Outer())
    assert isinstance(back.levels[1], Inner) and isinstance(back.coarse, Inner) and isinstance(back.more[0], Inner)
    assert (back.step, back.status, back.pair, back.name, back.found) == (7, Status.stalled, (3, 4.5), "x", True)
    assert (back.levels[1].step, back.coarse.accepted, back.more[0].rejected) == (5, 3, 1)
    torch.testing.assert_close(back.levels[1].weights, state.levels[1].weights, rtol=0, atol=0, equal_nan=True)
    assert back.memory.maxlen == 4 and torch.equal(back.memory[0], torch.ones(2))
    assert torch.equal(back.buffer, torch.arange(3)) and torch.equal(back.momentum, state.momentum)
    assert back.table["a"] == 1 and torch.equal(back.table[2], torch.ones(1))
    assert torch.equal(torch.rand(3, generator=back.generator), torch.rand(3, generator=state.generator))
    assert repr(saved.history.records) == repr(history(7).records)
    assert saved.meta == META and torch.equal(saved.x, torch.ones(3))


def test_the_template_and_the_saved_state_are_not_shared(tmp_path):
    saved, template = load(write(tmp_path / "c.pt")), Inner()
    first, second = saved.state(template), saved.state(template)
    first.weights += 1
    first.step = 9
    assert second.weights.sum() == 0 and template.weights.sum() == 0 and template.step == 0


@pytest.mark.parametrize(
    "solver",
    [
        AdaGrad(curvature="none"),
        AdaGrad(curvature="lbfgs"),
        Adam(lr=0.1),
        Sgd(lr=0.01, momentum=0.9, nesterov=True),
        TorchAdaGrad(lr=0.1),
        LBFGS(memory=3),
    ],
    ids=repr,
)
def test_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path, solver):
    f = quadratic(12, seed=3)
    x = torch.full((12,), 0.5, dtype=torch.float64)
    whole = minimise(f, x, solver, stop=Stop(max_steps=15), values=True)
    half = minimise(f, x, solver, stop=Stop(max_steps=6), values=True)
    save(tmp_path / "c.pt", x=half.x, state=half.state, history=half.history, meta=META | {"size": 12})
    del half
    saved = load(tmp_path / "c.pt")
    state = saved.state(solver.init(f, x))
    rest = minimise(f, saved.x, solver, state=state, past=saved.history, stop=Stop(max_steps=15), values=True)
    assert torch.equal(rest.x, whole.x)
    counted = ("gradient_evaluations", "work_units", "work_total", "synchronisations", "scalar_synchronisations")
    for name in ("step", "measure", "value", "accepted", *counted):
        assert rest.history.column(name) == whole.history.column(name), name


def test_random_state_comes_back(tmp_path):
    torch.manual_seed(1)
    np.random.seed(2)
    write(tmp_path / "c.pt")
    expected = torch.rand(4), np.random.rand(4)
    saved = load(tmp_path / "c.pt")
    torch.manual_seed(9)
    saved.restore_random()
    assert torch.equal(torch.rand(4), expected[0]) and np.array_equal(np.random.rand(4), expected[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "bowl:n=4"}, "with problem bowl:n=4, got one with bowl:n=3; give the same problem, or start anew"),
        ({"solver": "sgd"}, "with solver sgd, got one with adam:lr=0.1"),
        ({"size": 4}, "with size 4, got one with 3"),
        ({"levels": [1]}, "with levels"),
        ({"parts": 4}, "with parts 4, got one with None"),
    ],
)
def test_checkpoint_of_another_run(tmp_path, change, message):
    saved = load(write(tmp_path / "c.pt"))
    saved.check(META)
    saved.check(META | {"mldd": "9.9"})
    with pytest.raises(CheckpointError, match=message):
        saved.check(META | change)


@dataclass
class Fewer(State):
    pass


@dataclass
class Wider(State):
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))


@dataclass
class Narrow(State):
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(2))


@dataclass
class Number(State):
    weights: int = 0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Fewer(), r"`state` must be the fields \['accepted', 'level', .* of Fewer, got \["),
        (Wider(), r"`state.weights` must be float64 of shape \(5,\), got float64 of shape \(2,\); resume with"),
        (Narrow(), r"`state.weights` must be float32 of shape \(2,\), got float64"),
        (Number(), "`state.weights` must be int, got float64 of shape"),
    ],
)
def test_state_of_another_solver(tmp_path, template, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load(write(tmp_path / "c.pt")).state(template)
    assert "\n" not in str(error.value)


def test_lists_of_other_lengths_and_records_that_nothing_explains():
    levels = [{"step": 0}]
    with pytest.raises(CheckpointError, match=r"`state\[0\]` must be nothing"):
        restore([], levels)
    with pytest.raises(CheckpointError, match="`state` must be 2 items, got 1 items"):
        restore([1, 2], [1])
    with pytest.raises(CheckpointError, match="`state` must be a buffer, got"):
        restore(torch.ones(3), {"!scratch": ["load", [3]]})
    with pytest.raises(CheckpointError, match=r"`state` must be float32 of shape \(3,\), got float32 of shape \(4,\)"):
        restore(torch.ones(3), {"!scratch": ["float32", [4]]})
    with pytest.raises(CheckpointError, match="`state` must be a status, got exploded"):
        restore(None, {"!status": "exploded"})


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/mldd_was_here",)


def test_file_that_is_no_checkpoint(tmp_path):
    whole = write(tmp_path / "whole.pt").read_bytes()
    files = {
        "empty.pt": b"",
        "text.pt": b"step,level\n0,0\n",
        "truncated.pt": whole[: len(whole) // 2],
        "end.pt": whole[:-10],
        "evil.pt": pickle.dumps(Evil()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"format": "mldd checkpoint 2", "x": Evil()}, tmp_path / "evil2.pt")
    torch.save({"weight": torch.ones(3)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": "mldd checkpoint 2"}, tmp_path / "hollow.pt")
    torch.save({"format": "mldd checkpoint 2", "x": 1, "states": 1, "meta": 1, "random": 1}, tmp_path / "types.pt")
    for name in [*files, "evil2.pt", "foreign.pt", "list.pt", "hollow.pt", "types.pt"]:
        with pytest.raises(CheckpointError, match=f"{name} must be a") as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not os.path.exists("/tmp/mldd_was_here")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.pt must be a file"):
        load(tmp_path / "none.pt")


def test_an_older_checkpoint_survives_a_failure(tmp_path):
    write(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"`state.weights` must be a tensor, number, .* got function"):
        write(tmp_path / "c.pt", Inner(weights=lambda: 0))
    load(tmp_path / "c.pt")
    assert {p.name[:13] for p in tmp_path.iterdir()} == {"c.pt", "c.pt.history-"}


@dataclass
class Elsewhere(State):
    resumable: bool = False


def test_state_that_cannot_be_resumed(tmp_path):
    outer = full()
    outer.coarse = Elsewhere()
    assert is_resumable(full()) and not is_resumable(outer) and not is_resumable(Elsewhere())
    with pytest.raises(CheckpointError, match="`state.coarse` of type Elsewhere cannot be resumed"):
        write(tmp_path / "c.pt", outer)


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    write(tmp_path / "c.pt", Inner(weights=torch.zeros(10**6, dtype=torch.float64)[:2]))
    assert (tmp_path / "c.pt").stat().st_size < 100_000


def test_the_file_holds_all_records(tmp_path):
    records = [
        Record(k, 0, 1.0 / (k + 1), -k * 1e-300, 0, 0, Cost(seconds=k * 0.1, work_units=k / 3)) for k in range(5)
    ]
    back = load(write(tmp_path / "c.pt", Inner(step=4), history=History(records))).history
    assert back.records == records
    for name in FIELDS:
        assert type(back.records[1].row()[name]) is type(records[1].row()[name])
