"""Archives of tensors: what is written comes back bit by bit, and no byte can be changed unseen."""

import json
import struct

import numpy as np
import pytest
import torch

from mldd.checkpoints import archive
from mldd.checkpoints.archive import ArchiveError, Content

FORM = "an archive of tests"
RANDOM = torch.Generator().manual_seed(0)


def bits(*shape, dtype=torch.float64):
    """Return a tensor with any bits: NaN with a payload, subnormal numbers."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 256, (size,), generator=RANDOM).to(torch.uint8)
    return (raw & 1 if dtype == torch.bool else raw).view(dtype).view(shape)


TENSORS = {
    str(dtype): bits(3, 2, dtype=dtype)
    for dtype in (*archive._STORED, torch.complex64, torch.complex128)  # all that it can hold
}
TREE = {
    "tensors": TENSORS,
    "scalar": torch.tensor(-0.0),
    "empty": torch.empty(0, 3),
    "numbers": [1, 2**80, -0.0, float("nan"), float("inf"), 1 / 3, True, None, "é\ud800"],
    "keys": {1: "a", "!tensor": [{"!items": 2}]},
    "twice": [torch.ones(50), torch.ones(50)],
}


def write(path, tree=TREE):
    archive.write(path, Content.of(tree, ""), FORM)
    return path


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bytes(archive.raw(a)) == bytes(archive.raw(b))
    if isinstance(a, dict | list):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return type(a) is type(b) and len(a) == len(b) and all(same(a[key], b[key]) for key in keys)
    return type(a) is type(b) and repr(a) == repr(b)


def test_all_types_come_back_bit_by_bit(tmp_path):
    back = archive.read(write(tmp_path / "a"), FORM)
    assert same(back, TREE)
    assert archive.read_tree(tmp_path / "a", FORM)["scalar"] == {"!tensor": "scalar"}


def test_what_is_equal_is_written_once(tmp_path):
    one, many = write(tmp_path / "one", {"a": torch.ones(10**4)}), {f"a{k}": torch.ones(10**4) for k in range(9)}
    assert write(tmp_path / "many", many).stat().st_size < 1.2 * one.stat().st_size


def test_others_can_read_it(tmp_path):
    """By the text of the format: length, header, bytes; and by its own library, where that is installed."""
    raw = write(tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    begin, end = header["tensors.torch.float64"]["data_offsets"]
    found = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<f8").reshape(3, 2)
    assert found.tobytes() == TENSORS["torch.float64"].numpy().tobytes() and length % 8 == 0
    library = pytest.importorskip("safetensors.torch")
    for name, tensor in library.load_file(tmp_path / "a").items():
        mine = TENSORS.get(name.removeprefix("tensors."))
        if mine is not None and not mine.is_complex():
            assert same(tensor, mine), name


def test_no_byte_can_be_changed_unseen(tmp_path):
    whole = write(tmp_path / "a", {"x": bits(5), "state": {"squares": bits(4, dtype=torch.float32)}}).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for k in range(len(whole)):
        raw = bytearray(whole)
        raw[k] ^= (1, 32, 128)[k % 3]
        (tmp_path / "b").write_bytes(raw)
        with pytest.raises(ArchiveError) as error:
            archive.read(tmp_path / "b", FORM)
        if k >= 8 + length:
            assert ("`x`" if k < 8 + length + 40 else "`state.squares`") in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("end", [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_off(tmp_path, end):
    raw = write(tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw[:end])
    with pytest.raises(ArchiveError, match="truncated|damaged"):
        archive.read(tmp_path / "a", FORM)
    (tmp_path / "a").write_bytes(raw + b"x")
    with pytest.raises(ArchiveError, match="something was appended"):
        archive.read(tmp_path / "a", FORM)


def lying(tree, entries, form=FORM):
    """Return an archive with the right checksums of a header that nobody would write."""
    text = json.dumps({"tree": tree, "tensors": entries})
    made = {name: archive.Entry(**entry) for name, entry in entries.items()}
    return archive._header(text, made, form)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff" * 8 + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"{}", "its header is damaged"),
        (struct.pack("<Q", 2000) + b"[" * 2000, "its header is damaged"),
        (lying({"!tensor": "a"}, {}), "its tensor a is missing"),
        (lying({}, {"a": {"dtype": "float32", "shape": [2**60], "sha256": ""}}), "truncated"),
        (lying({}, {"a": {"dtype": "float32", "shape": [0], "sha256": ""}}), "`a` is damaged"),
        (lying({}, {}, "something else"), "it says that it is 'something else'"),
    ],
)
def test_hostile_files(tmp_path, raw, message):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(ArchiveError, match=message):
        archive.read(tmp_path / "a", FORM)


def test_types_that_it_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="`a` must be of a type in float64, .* got torch.uint16; convert it"):
        Content.of({"a": torch.ones(2, dtype=torch.uint16)}, "")
