"""Files of plain data: a tree of numbers and texts with tensors as leaves, written as safetensors with checksums.

The format is that of https://github.com/huggingface/safetensors: eight bytes with the length of a header in JSON, the
header, and the bytes of the tensors one after the other. The tree stands in the header, with the SHA-256 of every
tensor and its own. Reading never runs code of the file, and finds every byte that is not as it was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_TENSOR, _ITEMS = "!tensor", "!items"
_STORED = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The format has no complex numbers of double precision: both kinds are stored as pairs of real ones.
_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_STORED, *_PARTS)}
_HASHING = 4  # threads
_LONGEST = 2**28  # bytes of a header: the tree has no long lists


class ArchiveError(ValueError):
    """A file that is not a whole archive; the message names what is damaged, and follows 'cannot be read'."""


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor in an archive.

    Attributes
    ----------
    dtype : str
        As torch names it.
    shape : tuple of int
        Its shape.
    sha256 : str
        Of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    def tensor(self, content: bytearray) -> Tensor:
        """Return the tensor of these bytes.

        Parameters
        ----------
        content : bytearray
            As many as `bytes`.
        """
        flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return flat.view(_DTYPES[self.dtype]).reshape(self.shape)

    @staticmethod
    def of(tensor: Tensor) -> Entry:
        """Return the entry of a tensor of the CPU.

        Parameters
        ----------
        tensor : Tensor, contiguous
            What is to be stored.
        """
        name, digest = str(tensor.dtype).removeprefix("torch."), hashlib.sha256(raw(tensor)).hexdigest()
        return Entry(name, tuple(tensor.shape), digest)


@dataclass
class Content:
    """A tree in which the name of a tensor stands in its place, and the tensors by name.

    Attributes
    ----------
    tree : object
        What JSON can hold.
    tensors : dict of str to Tensor
        Contiguous, on the CPU; equal ones may stand for each other.
    entries : dict of str to Entry
        Of the tensors.
    """

    tree: Any = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    @staticmethod
    def of(value: Any, where: str) -> Content:
        """Return the content of a tree of dicts, lists, numbers and texts with tensors as leaves.

        Parameters
        ----------
        value : object
            The tree.
        where : str
            First part of the names of its tensors.
        """
        made = Content()
        made.tree = made._encoded(value, where)
        with ThreadPoolExecutor(_HASHING) as pool:  # hashing holds no lock of Python
            made.entries = dict(zip(made.tensors, pool.map(Entry.of, made.tensors.values()), strict=True))
        return made

    def under(self, prefix: str) -> Content:
        """Return the same with other names of the tensors.

        Parameters
        ----------
        prefix : str
            Put before every name.
        """
        names = {name: prefix + name for name in self.entries}
        return Content(
            _renamed(self.tree, names),
            {names[name]: tensor for name, tensor in self.tensors.items()},
            {names[name]: entry for name, entry in self.entries.items()},
        )

    def _encoded(self, value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            if str(value.dtype).removeprefix("torch.") not in _DTYPES:
                raise TypeError(f"`{where}` must be of a type in {', '.join(_DTYPES)}, got {value.dtype}; convert it")
            self.tensors[where] = value
            return {_TENSOR: where}
        if isinstance(value, list):
            return [self._encoded(item, f"{where}[{k}]") for k, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if all(type(key) is str and key not in (_TENSOR, _ITEMS) for key in value):
            return {key: self._encoded(item, f"{where}.{key}" if where else key) for key, item in value.items()}
        return {_ITEMS: [[key, self._encoded(item, f"{where}[{key!r}]")] for key, item in value.items()]}


def decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree with the tensors in their places.

    Parameters
    ----------
    tree : object
        Of a `Content`.
    tensors : dict of str to Tensor
        By name.

    Raises
    ------
    ArchiveError
        A name that there is no tensor of.
    """
    if isinstance(tree, list):
        return [decoded(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {_TENSOR}:
        if tree[_TENSOR] not in tensors:
            raise ArchiveError(f"its tensor {str(tree[_TENSOR])[:60]} is missing")
        return tensors[tree[_TENSOR]]
    if set(tree) == {_ITEMS}:
        return {key: decoded(item, tensors) for key, item in tree[_ITEMS]}
    return {key: decoded(item, tensors) for key, item in tree.items()}


def write(path: Path, content: Content, form: str) -> None:
    """Write an archive.

    Parameters
    ----------
    path : Path
        Of the new file.
    content : Content
        What is written; tensors of equal content are written once.
    form : str
        What kind of file it is, in a few words.

    Raises
    ------
    OSError
        It cannot be written.
    """
    stored, names = _once(content)
    text = json.dumps({"tree": _renamed(content.tree, names), "tensors": {n: vars(e) for n, e in stored.items()}})
    with open(path, "wb") as stream:
        stream.write(_header(text, stored, form))
        for name in stored:
            stream.write(raw(content.tensors[name]))


def read(path: Path, form: str) -> Any:
    """Return the tree in an archive, with its tensors on the CPU.

    Parameters
    ----------
    path : Path
        Of the file.
    form : str
        What kind of file it has to be.

    Raises
    ------
    ArchiveError
        It is truncated, damaged, or something else.
    OSError
        It cannot be opened.
    """
    with open(path, "rb") as stream:
        tree, entries = _head(stream, form)
        tensors = {name: _tensor(stream, name, entry) for name, entry in entries.items()}
    return decoded(tree, tensors)


def read_tree(path: Path, form: str) -> Any:
    """Return the tree alone, with the names of tensors in their places: they are not read.

    Parameters
    ----------
    path : Path
        Of the file.
    form : str
        What kind of file it has to be.

    Raises
    ------
    ArchiveError
        It is truncated, its header is damaged, or it is something else.
    OSError
        It cannot be opened.
    """
    with open(path, "rb") as stream:
        return _head(stream, form)[0]


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor of the CPU; the memory is shared.

    Parameters
    ----------
    tensor : Tensor, contiguous
        Of any type.
    """
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else bytearray()
    return memoryview(flat)


def _once(content: Content) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries to be stored, one per content, and the name under which each tensor is found."""
    first: dict[Entry, str] = {}
    names = {name: first.setdefault(entry, name) for name, entry in content.entries.items()}
    return {name: entry for entry, name in first.items()}, names


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, list):
        return [_renamed(item, names) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {_TENSOR}:
        return {_TENSOR: names[tree[_TENSOR]]}
    return {key: _renamed(item, names) for key, item in tree.items()}


def _header(text: str, entries: Mapping[str, Entry], form: str) -> bytes:
    """Return the length of the header and the header: all of it follows from the text, which has a checksum."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    table: dict[str, Any] = {"__metadata__": {"format": form, "content": text, "sha256": digest}}
    begin = 0
    for name, entry in entries.items():
        dtype, shape = _DTYPES[entry.dtype], list(entry.shape)
        if dtype in _PARTS:
            dtype, shape = _PARTS[dtype], [*shape, 2]
        end = begin + entry.bytes
        table[name] = {"dtype": _STORED[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at multiples of eight
    return struct.pack("<Q", len(head)) + head


def _head(stream: BinaryIO, form: str) -> tuple[Any, dict[str, Entry]]:
    """Return tree and entries from the header, which is compared with the one that would be written for them."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(size - 8, _LONGEST):
        raise ArchiveError("it is truncated, or no archive of tensors")
    head = stream.read(length)
    try:
        meta = json.loads(head)["__metadata__"]
        given, text = meta["format"], meta["content"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError("its header is damaged, or it is no archive of tensors") from error
    if given != form:
        raise ArchiveError(f"it says that it is {str(given)[:40]!r} and not {form!r}")
    try:
        content = json.loads(text)
        entries = {name: _entry(given) for name, given in content["tensors"].items()}
        whole = start + head == _header(text, entries, form)
        tree = content["tree"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ArchiveError("its header is damaged") from error
    if not whole:
        raise ArchiveError("its header is damaged")
    expected = 8 + length + sum(entry.bytes for entry in entries.values())
    if size != expected:
        raise ArchiveError("it is truncated" if size < expected else "something was appended to it")
    return tree, entries


def _entry(given: Mapping[str, Any]) -> Entry:
    entry = Entry(given["dtype"], tuple(given["shape"]), given["sha256"])
    if entry.dtype not in _DTYPES or not all(type(k) is int and k >= 0 for k in entry.shape):
        raise ValueError("no tensor of torch")
    return entry


def _tensor(stream: BinaryIO, name: str, entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    into = raw(tensor)
    if stream.readinto(into) != len(into):  # type: ignore[attr-defined]
        raise ArchiveError("it is truncated")
    if hashlib.sha256(into).hexdigest() != entry.sha256:
        raise ArchiveError(f"its `{name}` is damaged: the checksum differs")
    return tensor
