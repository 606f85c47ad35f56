"""What is said when a file cannot be written whole: the reason, and the path."""

import os
import subprocess

import pytest
import torch

from mldd.checkpoints import save
from mldd.loop import History, State, replacing


@pytest.fixture
def full(tmp_path):
    """Return a folder on a disk of 24 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_with_the_path_and_leaves_nothing(full):
    with pytest.raises(OSError, match=rf"{full}/c.pt could not be written \(No space left on device\)"):
        save(full / "c.pt", x=torch.zeros(10_000), state=State(), history=History(), meta={})
    with pytest.raises(OSError, match="table could not be written"), replacing(full / "table") as new:
        new.write_bytes(bytes(100_000))
    assert list(full.iterdir()) == []
