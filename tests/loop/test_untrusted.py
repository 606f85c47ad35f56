"""What a file is asked before a library reads it: a device, a bomb, more numbers than there is memory."""

import io
import os
import resource
import zipfile

import pytest
import torch

from mldd.loop import UntrustedError, check_archive, check_fits, check_regular, check_torch_file
from mldd.loop.untrusted import memory


def archive(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return stream.getvalue()


def test_devices_and_pipes_are_no_files(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(UntrustedError, match=f"{name}: expected a file, got a device, pipe or socket"):
            check_regular(tmp_path / name)
    check_regular(tmp_path)
    check_regular(tmp_path / "nothing")


def test_memory_is_what_the_machine_has_and_the_user_may_use():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory() <= physical
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (10**14, old[1]))
    try:
        assert memory() <= physical
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def test_what_does_not_fit_is_refused_with_its_size():
    check_fits(1000, "here")
    check_fits(memory() // 2, "here")
    with pytest.raises(UntrustedError, match=r"here: expected arrays that fit into memory \(.* GB\), got 1e\+06 GB"):
        check_fits(10**15, "here")


def test_an_archive_is_judged_by_what_it_expands_to(monkeypatch):
    content = archive({"a": bytes(10**7), "b": bytes(10**7)})
    assert len(content) < 10**5
    monkeypatch.setattr("mldd.loop.untrusted._SMALL", 0)
    monkeypatch.setattr("mldd.loop.untrusted.memory", lambda: 20_000_000)
    check_archive(content, "here")
    monkeypatch.setattr("mldd.loop.untrusted.memory", lambda: 19_999_999)
    with pytest.raises(UntrustedError, match=r"here: expected contents that fit into memory .* got 0.02 GB"):
        check_archive(content, "here")


def test_a_member_whose_name_is_damaged_is_not_lost():
    content = archive({"edges": b"1", "weights": b"2"})
    place = content.rindex(b"weights")  # in the directory
    damaged = content[:place] + b"xeights" + content[place + 7 :]
    assert zipfile.ZipFile(io.BytesIO(damaged)).namelist() == ["edges", "xeights"]
    with pytest.raises(zipfile.BadZipFile, match="File name in directory"):
        check_archive(damaged, "here")


def test_every_bit_of_a_file_of_torch_counts(tmp_path):
    """torch itself reads a tensor with a flipped bit without a word."""
    stream = io.BytesIO()
    torch.save({"x": torch.arange(1000.0)}, stream)
    content = stream.getvalue()
    check_torch_file(content, "here")
    place = content.index(torch.arange(500.0, 502.0).numpy().tobytes())
    damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    assert not torch.equal(torch.load(io.BytesIO(damaged))["x"], torch.arange(1000.0))
    with pytest.raises(UntrustedError, match="here: expected a whole file, got a damaged archive/data/0 in it"):
        check_torch_file(damaged, "here")
    (tmp_path / "x.pt").write_bytes(content[:-100])
    with pytest.raises(EOFError):
        check_torch_file(tmp_path / "x.pt", "here")
    check_torch_file(b"\x80\x02}q\x00.", "here")  # the older format is left to torch
