"""Records, histories as CSV, the progress bar, and files that are replaced whole."""

import io
import math
import os
import sys
from dataclasses import replace

import pytest

from mldd.loop import Cost, CsvWriter, History, Progress, Record, read_csv, replacing, write_table
from mldd.loop.monitor import FIELDS

RECORD = Record(0, 1, 1 / 3, math.nan, 3, 4, Cost(1, 1.5, 2.5, 2, 5, 16, 6, 48, 1, 0.1, 1.25, 7.0))
RECORDS = [RECORD, replace(RECORD, step=1, measure=5e-324, value=-1e300), replace(RECORD, step=2, measure=math.inf)]


def write(path, records, past=None):
    writer = CsvWriter(path, past)
    for record in records:
        writer(record)
    return writer


def test_round_trip_keeps_every_digit(tmp_path):
    write(tmp_path / "h.csv", RECORDS).close()
    assert list(map(repr, read_csv(tmp_path / "h.csv").records)) == list(map(repr, RECORDS))
    assert (tmp_path / "h.csv").read_text().splitlines()[0] == ",".join(FIELDS)


def test_every_row_is_on_disk_at_once(tmp_path):
    writer = write(tmp_path / "h.csv", RECORDS)
    assert len(read_csv(tmp_path / "h.csv").records) == 3
    writer.close()


def test_a_resumed_run_writes_its_past_first(tmp_path):
    write(tmp_path / "h.csv", RECORDS[2:], History(RECORDS[:2])).close()
    assert read_csv(tmp_path / "h.csv").column("step") == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must start with the header"),
        (b"a,b\n1,2\n", "must start with the header"),
        (b"\x89PNG\r\n\xff\xfe", "must start with the header"),
        (b"\x00\x00", "h.csv must"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_csv(tmp_path / "h.csv")
    assert "\n" not in str(error.value)


def test_a_history_is_read_as_far_as_it_is_whole(tmp_path):
    write(tmp_path / "h.csv", RECORDS).close()
    content = (tmp_path / "h.csv").read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == 10]  # behind the header and each of the three rows
    for length in range(ends[0], len(content) + 1):
        (tmp_path / "h.csv").write_bytes(content[:length])
        whole = sum(end <= length for end in ends) - 1
        assert list(map(repr, read_csv(tmp_path / "h.csv").records)) == list(map(repr, RECORDS[:whole])), length


@pytest.mark.parametrize("row", [b"1,2", b"x," * 40, b"\x00\xff", b'"'])
def test_a_row_that_is_no_record_ends_the_history_and_is_said(tmp_path, row):
    write(tmp_path / "h.csv", RECORDS).close()
    lines = (tmp_path / "h.csv").read_bytes().split(b"\n")
    (tmp_path / "h.csv").write_bytes(b"\n".join([*lines[:2], row, *lines[2:]]))
    with pytest.warns(UserWarning, match="row 2 is no record .*: the rows before it are read"):
        assert list(map(repr, read_csv(tmp_path / "h.csv").records)) == list(map(repr, RECORDS[:1]))


def test_a_history_on_a_device_or_in_a_pipe_is_refused(tmp_path):
    (tmp_path / "h.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "p.csv")
    for name in ("h.csv", "p.csv"):
        with pytest.raises(ValueError, match=f"{name}: expected a file, got a device, pipe or socket"):
            read_csv(tmp_path / name)


def test_column():
    assert History(RECORDS).column("step") == [0, 1, 2]
    assert History(RECORDS).column("scalar_synchronisations") == [5, 5, 5]


def test_a_resumed_run_adds_its_cost_to_what_went_before():
    past = Cost(*range(12))
    assert Cost(*range(10, 22)).after(past) == Cost(*(10 + 2 * k for k in range(12)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(monkeypatch):
    for stream, shown, expected in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Progress(3, "obstacle adagrad", shown)
        for record in RECORDS:
            bar(record)
        bar.close()
        assert ("obstacle adagrad" in stream.getvalue()) is expected


def test_replacing_writes_all_or_nothing(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as new:
        assert new.suffix == ".json" and new.parent == tmp_path
        new.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, [{"name": "a", "steps": 1}, {"name": "b, c", "steps": 2}])
    assert path.read_text() == 'name,steps\na,1\n"b, c",2\n'
    with pytest.raises(ValueError, match="other"):
        write_table(path, [{"name": "d"}, {"other": "e"}])
    assert path.read_text().startswith("name,steps")
    assert list(tmp_path.iterdir()) == [path]
