"""Checksums beside files: written once, compared by every reader, and by sha256sum."""

import hashlib
import shutil
import subprocess

import numpy as np
import pytest
import torch

from mldd.problems.data import DataError, load_array, load_graph, write_checksum
from mldd.problems.data.graph_file import graph_fields
from tests.helpers import user_arrays, user_tensors


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    return tmp_path / "own.npz"


def folder(path):
    (path / "below").mkdir(parents=True)
    (path / "zarr.json").write_bytes(b"1")
    (path / "below" / "two").write_bytes(b"22")
    return path


def test_the_line_is_that_of_sha256sum(file):
    made = write_checksum(file)
    assert made.read_text() == f"{hashlib.sha256(file.read_bytes()).hexdigest()}  own.npz\n"
    folder(file.parent / "store")
    write_checksum(f"{file.parent}/store/")
    if shutil.which("sha256sum"):
        for name in ("own.npz", "store"):
            call = ["sha256sum", "--check", "--strict", f"{name}.sha256"]
            done = subprocess.run(call, cwd=file.parent, capture_output=True, text=True)
            assert done.returncode == 0 and "FAILED" not in done.stdout


def test_every_reader_compares_it(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    torch.save(user_tensors(), tmp_path / "own.pt")
    np.savez(tmp_path / "array.npz", x=np.ones(3))
    readers = {"own.npz": load_graph, "own.pt": graph_fields, "array.npz": lambda path: load_array(path, "samples")}
    for name, read in readers.items():
        write_checksum(tmp_path / name)
        read(tmp_path / name)
        beside = tmp_path / f"{name}.sha256"
        beside.write_text("0" * 64 + beside.read_text()[64:])
        with pytest.raises(DataError, match=rf"{name}: expected sha256 000000000000... of {name}.sha256, got \w{{12}}"):
            read(tmp_path / name)


def test_the_way_out_works(file, run):
    write_checksum(file)
    np.savez(file, **user_arrays(seed=1))
    with pytest.raises(DataError, match="damaged or changed") as error:
        load_graph(file)
    assert run("data checksum", file)[0] == 2
    command = str(error.value).partition("write them anew: mldd ")[2]
    assert run(command) == (0, f"{file}.sha256\n", "")
    load_graph(file)
    assert run("data checksum", file) == (0, f"{file}.sha256\n", "")


def test_files_of_a_folder_must_be_those_that_are_listed(tmp_path):
    from mldd.problems.data import verify

    store = folder(tmp_path / "store")
    write_checksum(store)
    verify(store)
    (store / "three").write_bytes(b"")
    with pytest.raises(DataError, match="expected the files that store.sha256 lists, got store/three too"):
        verify(store)
    (store / "three").unlink()
    (store / "below" / "two").write_bytes(b"23")
    with pytest.raises(DataError, match=r"got \w{12}... for store/below/two: damaged or changed"):
        verify(store)
    (store / "below" / "two").unlink()
    with pytest.raises(DataError, match="expected store/below/two, which store.sha256 lists, got none"):
        verify(store)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xfe\n", b"00  own.npz\n"])
def test_a_file_of_checksums_that_is_none_is_refused(file, content):
    file.with_name("own.npz.sha256").write_bytes(content)
    with pytest.raises(DataError, match="own.npz.sha256: expected lines of sha256sum, got others"):
        load_graph(file)


def test_nothing_and_devices_have_no_checksum(tmp_path, run):
    (tmp_path / "zero").symlink_to("/dev/zero")
    none, above = "expected a file or a folder by its name, got none", "by its name, got a folder above; correct"
    for name, message in (("zero", "got a device, pipe or socket"), ("none", none), ("/", above)):
        code, _, err = run("data checksum", tmp_path / name)
        assert code == 2 and message in err and err.count("\n") == 1


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    with pytest.raises(DataError, match="expected a file, a Zarr store or a folder of shards"):
        write_checksum(tmp_path / "home")
