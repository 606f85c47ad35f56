"""Loggers, each read back by its own package or format: the columns and numbers of history.csv, in all the same."""

import json
import math
import struct
import time
import warnings
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import pytest

from mldd import Status
from mldd.loop import Cost, Logger, Record, check_loggers, read_csv
from mldd.loop.loggers import LOGGERS, numbers

KINDS = list(LOGGERS)
needs = {kind: pytest.mark.skipif(find_spec(kind) is None, reason=f"needs the package of {kind}") for kind in KINDS}
each = pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs[kind]) for kind in KINDS])


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing of the machine's own settings counts."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def of_tensorboard(folder):
    """Read the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    text = {
        tag: events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode() for tag in ("run", "status")
    }
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found, dict(line.split(": ", 1) for line in text["run"].split("  \n")), text["status"].partition(":")[0]


def of_mlflow(folder):
    """Ask MLflow's client."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mldd").experiment_id])
    of_run = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    found = {name: sorted((m.step, m.value) for m in metrics) for name, metrics in of_run.items()}
    assert run.info.status == ("FAILED" if run.data.tags["status"] == "diverged" else "FINISHED")
    return found, run.data.params, run.data.tags["status"]


def pieces(data):
    """The records of a log of LevelDB, whose blocks of 32 KiB hold pieces with a header of seven bytes."""
    place, held = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield held
            held = b""


def of_wandb(folder):
    """Parse the file that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    (file,) = (path for path in folder.rglob("run-*.wandb") if "offline-run" in str(path.parent))
    found, config, summary = defaultdict(list), {}, {}
    messages, end = [], time.monotonic() + 60
    while not any(message.HasField("exit") for message in messages):  # its service writes after `finish` has returned
        assert time.monotonic() < end, f"{file} has no end"
        messages = [Message.FromString(piece) for piece in pieces(file.read_bytes())]
        time.sleep(0.01)
    for message in messages:
        row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in message.history.item}
        for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
            found[name].append((row["_step"], row[name]))
        config |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in message.run.config.update}
        summary |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in message.summary.update}
    return dict(found), config, summary["status"]


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}


@each
def test_what_a_logger_has_is_what_the_history_has(kind, run, tmp_path, without_figures):
    line = f"train sbm --solver adam:lr=0.01 --steps 5 --seed 3 --validate-every 2 --quiet --log {kind},csv --out"
    assert run(line, tmp_path) == (0, "", "")
    history = read_csv(tmp_path / "history.csv")
    found, about, status = READERS[kind](tmp_path / kind)
    rows = [numbers(record) for record in history.records]
    assert set(found) == set().union(*rows) and {"measure", "value", "work_units", "validation_loss"} <= set(found)
    for name, pairs in found.items():
        expected = [(step, row[name]) for step, row in enumerate(rows) if name in row]
        np.testing.assert_allclose(pairs, expected, rtol=1e-6)  # TensorBoard has 32 bits
    assert (about["problem"], about["solver"], str(about["seed"])) == ("sbm", "adam:lr=0.01", "3")
    assert status == "max_steps"


@each
def test_a_resumed_run_has_its_past(kind, run, tmp_path, without_figures):
    line = f"train obstacle:n=7 --solver adam --quiet --log {kind}"
    assert run(f"{line} --steps 2 --checkpoint {tmp_path / 'c.pt'} --out", tmp_path / "a")[0] == 0
    assert run(f"{line} --steps 5 --resume {tmp_path / 'c.pt'} --out", tmp_path / "b")[0] == 0
    found, _, _ = READERS[kind](tmp_path / "b" / kind)
    assert [step for step, _ in found["measure"]] == [0, 1, 2, 3, 4, 5]


@each
def test_infinite_values_and_a_failure_are_said(kind, tmp_path):
    logger = Logger(kind, tmp_path, {"problem": "p"})
    logger(Record(0, 0, 1.0, math.nan, 0, 0, Cost()))
    logger(Record(1, 0, 2.0, 1e300, 0, 0, Cost()))
    logger.end(Status.diverged)
    logger.close()
    found, _, status = READERS[kind](tmp_path / kind)
    assert status == "diverged" and [step for step, _ in found["measure"]] == [0, 1]
    assert [step for step, _ in found["value"]] == [1], "what was not computed is not logged"


@needs["mlflow"]
def test_a_run_that_never_ended_has_failed(tmp_path):
    from mlflow.tracking import MlflowClient

    logger = Logger("mlflow", tmp_path, {"problem": "p"})
    logger.close()
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (one,) = client.search_runs([client.get_experiment_by_name("mldd").experiment_id])
    assert one.info.status == "FAILED"


@needs["mlflow"]
def test_runs_of_an_ensemble_are_in_one_place(run, tmp_path, without_figures):
    from mlflow.tracking import MlflowClient

    assert run("train sbm --solver adam --steps 1 --seeds 0-2 --quiet --log mlflow --out", tmp_path)[0] == 0
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    found = client.search_runs([client.get_experiment_by_name("mldd").experiment_id])
    measures = {int(one.data.params["seed"]): one.data.metrics["measure"] for one in found}
    histories = {seed: read_csv(tmp_path / f"{seed}" / "history.csv").records for seed in range(3)}
    assert measures == {seed: records[-1].measure for seed, records in histories.items()}


@needs["tensorboard"]
def test_event_files_of_an_ensemble_are_apart(run, tmp_path, without_figures):
    assert run("train sbm --solver adam --steps 1 --seeds 4,6 --quiet --log tensorboard --out", tmp_path)[0] == 0
    assert [of_tensorboard(tmp_path / seed / "tensorboard")[1]["seed"] for seed in "46"] == ["4", "6"]


@needs["mlflow"]
def test_a_logger_that_fails_does_not_cost_the_run(tmp_path, run, monkeypatch, without_figures):
    from mlflow.tracking import MlflowClient

    whole = MlflowClient.log_batch

    def gone(self, run_id, metrics=(), **more):
        if metrics and metrics[0].step == 2:
            raise ConnectionError("the server\nis gone")
        return whole(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", gone)
    with pytest.warns(
        UserWarning, match="the logger mlflow has failed, .*: ConnectionError: the server is gone"
    ) as said:
        assert run("train obstacle:n=7 --solver adam --steps 5 --quiet --log mlflow --out", tmp_path)[0] == 0
    assert len(said) == 1 and len(read_csv(tmp_path / "history.csv").records) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_one_line_with_the_way_out(kind, run, tmp_path, monkeypatch):
    monkeypatch.setattr("mldd.loop.loggers.find_spec", lambda name: None if name == kind else find_spec(name))
    code, out, err = run(f"train obstacle:n=7 --solver adam --log {kind} --out", tmp_path)
    assert (code, out) == (2, "") and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert err == f'mldd: error: the logger {kind} needs a package that is missing; pip install "mldd[{kind}]"\n'


def test_what_is_refused(run, tmp_path):
    code, _, err = run("train obstacle:n=7 --solver adam --log tensorbord --out", tmp_path)
    assert code == 2 and "a logger must be one of csv tensorboard mlflow wandb, got 'tensorbord' (did you mean" in err
    code, _, err = run("train obstacle:n=7 --solver adam --log csv")
    assert code == 2 and "--log csv needs a folder for its files, got none; add --out DIR" in err


def test_nothing_is_loaded_before_it_is_used():
    import subprocess
    import sys

    program = (
        f"import sys, mldd.loop.loggers as l; l.check_loggers(['csv']); print({list(LOGGERS)} & sys.modules.keys())"
    )
    program = program.replace(str(list(LOGGERS)), "{*l.LOGGERS}")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_csv_needs_no_package():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_loggers(["csv"])
