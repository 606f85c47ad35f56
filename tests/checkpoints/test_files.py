"""Files of checkpoints: the one before, the history beside them, and what is refused by name."""

import dataclasses
import math
import os

import pytest
import torch

from mldd import checkpoints
from mldd.checkpoints import archive, check_replacing, load, previous, save
from mldd.checkpoints.checkpoint import FORMAT
from mldd.loop import KINDS, CheckpointError, Cost, History, Record
from mldd.solvers import Adam
from mldd.solvers.baselines import AdamState

META = {"problem": "bowl:n=3", "solver": "adam:lr=0.1", "seed": 0, "size": 3, "dtype": "torch.float32"}


def history(steps):
    """Records of a run; every third one has a validation."""
    records = [
        Record(k, 0, 1 / (k + 1), -k * 1e-300, 0, k, Cost(k, k / 3, seconds=k * 0.1, bytes_exchanged=2**60 + k))
        for k in range(steps + 1)
    ]
    return History([dataclasses.replace(r, validation={} if r.step % 3 else {"loss": r.step / 7}) for r in records])


def write(path, step=0, x=None, **changes):
    """Write the checkpoint of a run after some steps."""
    state = AdamState(step=step, mean=torch.full((3,), 0.5), square=torch.ones(3), scratch=torch.full((3,), math.nan))
    content = {"x": torch.full((3,), float(step)), "state": state, "history": history(step), "meta": META}
    save(path, **(content | ({} if x is None else {"x": x}) | changes))
    return path


def parts(folder):
    return sorted(path.name[:13] for path in folder.iterdir())


def test_the_one_before_is_kept_and_read_where_the_newest_is_damaged(tmp_path):
    file = tmp_path / "c.pt"
    for step in (1, 4, 9):
        write(file, step)
    assert parts(tmp_path) == ["c.pt", "c.pt.history-", "c.pt.previous"]
    assert load(file).history == history(9) and load(file).note == ""
    assert load(previous(file)).history == history(4)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    found = load(file)
    assert torch.equal(found.x, torch.full((3,), 4.0)) and found.history == history(4)
    assert "c.pt must be a whole checkpoint" in found.note and "is damaged: the checksum differs" in found.note
    assert found.note.endswith(f"going on from the one before it, {previous(file)} of step 4")
    file.unlink()
    assert "must be a file, got none" in load(file).note
    write(file, 9), write(file, 12)
    for path in (file, previous(file)):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="c.pt must be a whole checkpoint of mldd, .*it is truncated") as error:
        load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("links", [True, False])
def test_a_whole_checkpoint_is_there_whenever_the_swap_is_cut_off(tmp_path, monkeypatch, links):
    file = tmp_path / "c.pt"
    write(file, 1), write(file, 2)
    if not links:  # as on disks without hard links
        monkeypatch.setattr(os, "link", lambda *paths: os.stat(tmp_path / "nowhere"))
    whole, calls = os.replace, []

    def cut_off(*paths):
        calls.append(paths)
        if len(calls) == at:
            raise KeyboardInterrupt
        return whole(*paths)

    monkeypatch.setattr(os, "replace", cut_off)
    for at in (1, 2):  # noqa: B007 (`cut_off` reads it)
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            write(file, 3)
        assert load(file).history.records[-1].step in (2, 3)


def test_records_are_appended_and_not_written_anew(tmp_path):
    file = tmp_path / "c.pt"
    write(file, 500)
    (side,) = tmp_path.glob("c.pt.history-*")
    before, stamp = side.read_bytes(), file.stat().st_size
    write(file, 501)
    after = side.read_bytes()
    assert after.startswith(before) and 0 < len(after) - len(before) < 400
    assert abs(file.stat().st_size - stamp) < 50 and stamp < 20_000, "no records in the checkpoint itself"
    side.write_bytes(after + b"what a killed run had begun")
    assert load(file).history == history(501)
    write(file, 502)
    assert side.read_bytes().startswith(after) and load(file).history == history(502)
    write(file, 502)
    assert load(file).history == history(502), "also where there is nothing new"


def test_another_run_begins_a_history_of_its_own(tmp_path):
    file, other = tmp_path / "c.pt", history(3)
    write(file, 9)
    other.records[1] = dataclasses.replace(other.records[1], cost=Cost(seconds=99.0))
    other.records[3] = dataclasses.replace(other.records[3], cost=Cost(seconds=99.0))
    write(file, 3, history=other)
    assert load(file).history == other and load(previous(file)).history == history(9)
    assert len(list(tmp_path.glob("c.pt.history-*"))) == 2
    write(file, 3, history=other)
    assert len(list(tmp_path.glob("c.pt.history-*"))) == 1, "what nothing refers to is removed"


def test_a_history_that_was_cut_off_is_not_gone_on_with(tmp_path):
    file = write(tmp_path / "c.pt", 7)
    (side,) = tmp_path.glob("c.pt.history-*")
    side.write_bytes(side.read_bytes()[:-8])
    write(file, 9)
    assert load(file).history == history(9)


def test_checkpoints_may_be_moved_and_renamed_with_their_histories(tmp_path):
    write(tmp_path / "c[1].pt", 7), write(tmp_path / "c[1].pt", 8)
    (tmp_path / "c[1].pt").rename(tmp_path / "best")
    assert load(tmp_path / "best").history == history(8)
    write(tmp_path / "best", 9)
    assert load(tmp_path / "best").history == history(9) and load(tmp_path / "c[1].pt.previous").history == history(7)


def test_a_history_that_is_damaged_or_missing(tmp_path):
    file = write(tmp_path / "c.pt", 7)
    (side,) = tmp_path.glob("c.pt.history-*")
    whole = side.read_bytes()
    for k in range(0, len(whole), 5):
        raw = bytearray(whole)
        raw[k] ^= 4
        side.write_bytes(raw)
        with pytest.raises(CheckpointError, match=f"its history {side.name} is damaged"):
            load(file)
    side.unlink()
    with pytest.raises(CheckpointError, match=f"its history {side.name}, which lies beside it, is missing"):
        load(file)


def forged(path, **changes):
    """Write a checkpoint with other content and the right checksums."""
    tree = archive.read(write(path, 7), FORMAT)
    state = {key: changes.pop(key) for key in list(changes) if key in tree["ranks"][0]["state"]}
    tree["ranks"][0]["state"].update(state)
    archive.write(path, archive.Content.of(tree | changes, ""), FORMAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.tensor([1.0, math.nan, 2.0])}, "`x` must be finite, got nan at entry 1"),
        ({"x": torch.tensor([-math.inf, 1.0, 2.0])}, "`x` must be finite, got -inf at entry 0"),
        ({"x": torch.ones(4)}, r"`x` must be torch.float32 of shape \(3,\), got torch.float32 of shape \(4,\)"),
        ({"x": torch.ones(3, dtype=torch.float64)}, r"`x` must be torch.float32 of shape \(3,\), got torch.float64"),
        ({"step": -5}, "`state.step` must be 7, that of its last record, got -5"),
        ({"step": 2**62}, "`state.step` must be 7, that of its last record, got 4611686018427387904"),
        ({"step": 8}, "`state.step` must be 7, that of its last record, got 8"),
        ({"accepted": -1}, r"`state.accepted` must be a count in 0..2\^53, got -1"),
        ({"rejected": 2**62}, "`state.rejected` must be a count in"),
        ({"mean": torch.tensor([0.0, 0.0, math.nan])}, "`state.mean` must be finite, got nan at entry 2"),
        ({"square": torch.tensor([math.inf, 0.0, 0.0])}, "`state.square` must be finite, got inf at entry 0"),
        ({"mean": torch.ones(2)}, r"`state.mean` must be float32 of shape \(3,\), got float32 of shape \(2,\)"),
        ({"history": {"file": "x.history-../../x", "columns": list(KINDS)}}, "the name of its history is damaged"),
        ({"meta": 3}, "must be a checkpoint written by mldd"),
        ({"ranks": []}, "must be a checkpoint written by mldd"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, changes, message):
    forged(tmp_path / "c.pt", **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "c.pt").state(Adam().init(None, torch.ones(3)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_iterate_that_is_not_finite_is_not_written(tmp_path):
    write(tmp_path / "c.pt", 1)
    with pytest.raises(CheckpointError, match="`x` must be finite, got inf at entry 2"):
        write(tmp_path / "c.pt", 2, x=torch.tensor([0.0, 0.0, math.inf]))
    assert load(tmp_path / "c.pt").history == history(1)
    big = torch.full((3,), 3e38)  # whose sum is not finite
    write(tmp_path / "c.pt", 2, x=big)
    assert torch.equal(load(tmp_path / "c.pt").x, big)


def test_buffers_are_not_written(tmp_path):
    n = 10**5
    state = dataclasses.replace(Adam().init(None, torch.ones(n)), mean=torch.rand(n), square=torch.rand(n))
    save(tmp_path / "c.pt", x=torch.rand(n), state=state, history=History(), meta={})
    assert (tmp_path / "c.pt").stat().st_size < 3 * 4 * n + 20_000
    assert load(tmp_path / "c.pt").state(Adam().init(None, torch.ones(n))).scratch.shape == (n,)


def test_the_checkpoint_of_another_run_is_not_replaced_unasked(tmp_path):
    file = tmp_path / "c.pt"
    check_replacing(file, META, overwrite=False)
    write(file)
    check_replacing(file, META | {"mldd": "9.9"}, overwrite=False)
    with pytest.raises(FileExistsError, match=r"one of another run \(seed 0 in place of 1\); .* or --overwrite"):
        check_replacing(file, META | {"seed": 1}, overwrite=False)
    check_replacing(file, META | {"seed": 1}, overwrite=True)
    file.write_text("step,level\n")
    with pytest.raises(FileExistsError, match="got a file that is no whole checkpoint"):
        check_replacing(file, META, overwrite=False)
    assert not checkpoints.is_checkpoint(file)


def test_of_long_descriptions_the_parts_that_differ_are_said(tmp_path):
    long = "graph:" + ",".join(f"key{k}={k}" for k in range(40))
    write(tmp_path / "c.pt", meta=META | {"problem": long})
    with pytest.raises(CheckpointError, match="with problem key7=8, got one with key7=7; give the same problem"):
        load(tmp_path / "c.pt").check(META | {"problem": long.replace("key7=7", "key7=8")})
