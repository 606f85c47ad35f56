"""Files that are read in a process apart: the same arrays, and a library that hangs or crashes costs the file."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from mldd.problems.data import DataError, File, load_series
from mldd.problems.data.formats import apart
from mldd.problems.data.formats.netcdf import by_xarray

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")


@pytest.fixture
def file(tmp_path):
    time_, places = np.arange(24.0), {"lat": np.linspace(50, 47, 4), "lon": np.linspace(0, 4, 5)}
    values = np.random.default_rng(0).random((24, 4, 5)).astype(np.float32)
    values[3, 1, 2] = np.nan
    fields = {"t2m": (("time", "lat", "lon"), values, {"units": "K"}), "z": (("lat",), np.arange(4.0))}
    fields["altitude"] = (("lat", "lon"), np.ones((4, 5)))
    units = {"units": "hours since 2020-01-01", "calendar": "noleap"}
    xarray.Dataset(fields, {"time": ("time", time_, units), **places}).to_netcdf(tmp_path / "f.nc", engine="h5netcdf")
    return tmp_path / "f.nc"


def test_the_arrays_are_those_that_are_read_here(file):
    options = {"engine": "h5netcdf"}
    here, there = by_xarray(File(file), **options), apart.read_apart(File(file), options)
    for name in ("time", "latitude", "longitude", "altitude"):
        one, other = getattr(here, name), getattr(there, name)
        assert one.dtype == other.dtype and np.array_equal(one, other) and other.flags.writeable
    assert np.array_equal(here.variables["t2m"], there.variables["t2m"], equal_nan=True)
    assert (here.units, here.calendar, here.unused) == (there.units, there.calendar, there.unused)
    assert there.calendar == "noleap" and there.unused == ("z",)


def test_one_process_reads_one_file_after_the_other_and_says_what_is_wrong(file):
    load_series(file)
    process = apart._SERVER.process
    with pytest.raises(DataError, match=f"{file}: variable must be one of t2m, got 'u'"):
        load_series(file, variables=("u",))
    (file.parent / "bad.nc4").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"bad.nc4: expected a file that xarray can read, got OSError.*; get it anew"):
        load_series(file.parent / "bad.nc4")
    load_series(file)
    assert apart._SERVER.process is process


def test_a_library_that_hangs_costs_the_file(file, monkeypatch):
    load_series(file)
    monkeypatch.setattr(apart, "_PATIENCE", 0.2)
    os.kill(apart._SERVER.process.pid, signal.SIGSTOP)
    with pytest.raises(
        DataError, match=r"f.nc: expected a file that can be read in 0 s, got one .* library hangs; get"
    ):
        load_series(file)
    monkeypatch.undo()
    load_series(file)  # by a new process


def test_a_library_that_crashes_costs_the_file(file):
    load_series(file)
    pid = apart._SERVER.process.pid
    os.kill(pid, signal.SIGSTOP)

    def crash():
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(DataError, match=r"f.nc: expected a whole file, got one .* library crashes \(status -9\); get"):
        load_series(file)
    thread.join()
    load_series(file)


def test_a_process_that_has_ended_being_idle_is_started_again(file):
    load_series(file)
    apart._SERVER.process.stdin.close()
    apart._SERVER.process.wait(20)
    load_series(file)


def test_a_process_that_ends_when_it_is_asked_is_started_again_once(file, monkeypatch):
    expected, program, start = load_series(file), apart._PROGRAM, apart._Server.start
    started = []

    def ending(count):
        """Let so many processes take their request and end well, as one does that has been idle."""
        started.clear()
        apart._SERVER.stop()

        def start_one(server):
            ends = len(started) < count
            monkeypatch.setattr(apart, "_PROGRAM", "import sys; sys.stdin.buffer.readline()" if ends else program)
            started.append(ends)
            start(server)

        monkeypatch.setattr(apart._Server, "start", start_one)

    ending(1)
    assert np.array_equal(load_series(file).values, expected.values, equal_nan=True) and started == [True, False]
    ending(9)
    with pytest.raises(DataError, match=r"f.nc: expected a whole file, got one .* library crashes \(status 0\); get"):
        load_series(file)
    assert started == [True, True]
    apart._SERVER.stop()


def test_a_fork_has_a_process_of_its_own(file):
    load_series(file)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            load_series(file)
            os.write(writing, b"%d" % apart._SERVER.process.pid)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != apart._SERVER.process.pid
    load_series(file)
