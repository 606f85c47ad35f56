"""Whole files of every format that is read, and how they are damaged, for experiments/trust/files.py.

python experiments/trust/mutations.py DIR    # writes the whole files there

"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

Random = np.random.Generator
NODES, TIMES = 40, 30


def main() -> None:
    """Write the whole files into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(*write_whole(folder).values(), sep="\n")


# ------------------------------------------------------------------------------------------------ whole files


def graph_arrays() -> dict[str, Any]:
    """Return a graph in the layout of gnn-benchmark."""
    random = np.random.default_rng(0)
    adjacency = sp.random(NODES, NODES, 0.15, format="csr", random_state=0, data_rvs=np.ones)
    features = sp.csr_matrix(random.random((NODES, 4)))
    pieces = ("data", "indices", "indptr", "shape")
    made = {f"adj_{key}": np.asarray(getattr(adjacency, key)) for key in pieces}
    made |= {f"attr_{key}": np.asarray(getattr(features, key)) for key in pieces}
    return {**made, "labels": np.arange(NODES) % 3}


def plain_arrays() -> dict[str, Any]:
    """Return a graph in the layout of the heterophilous sets, with masks, weights and attributes."""
    random, number = np.random.default_rng(1), np.arange(NODES)
    edges = np.stack([number, (number + 1) % NODES], axis=1)
    masks = {f"{name}_masks": (number % 3 == k)[None] for k, name in enumerate(("train", "val", "test"))}
    of_edges = {"edge_weight": random.random(NODES) + 0.5, "edge_attr": random.random((NODES, 2))}
    features = {"node_features": random.random((NODES, 4)), "node_labels": number % 2}
    return {"edges": edges, **features, **masks, **of_edges}


def series_arrays() -> dict[str, Any]:
    """Return a field on a small grid."""
    time = np.datetime64("2020-01-01", "s") + np.arange(TIMES) * np.timedelta64(3600, "s")
    values = np.random.default_rng(2).random((TIMES, 3, 4)).astype(np.float32)
    return {"time": time, "latitude": np.linspace(50, 48, 3), "longitude": np.linspace(0, 3, 4), "t2m": values}


def tensors() -> dict[str, torch.Tensor]:
    """Return a graph as torch_geometric names its tensors."""
    number = torch.arange(NODES)
    features = torch.rand(NODES, 4, generator=torch.Generator().manual_seed(0))
    return {"x": features, "edge_index": torch.stack([number, (number + 1) % NODES]), "y": number % 3}


def dataset() -> Any:
    """Return the field as xarray has it."""
    import xarray

    arrays = series_arrays()
    field = (("time", "latitude", "longitude"), arrays.pop("t2m"), {"units": "K"})
    return xarray.Dataset({"t2m": field}, arrays)


def write_whole(folder: Path) -> dict[str, Path]:
    """Write one file or folder of every format, and return them by name of the format."""
    from mldd.problems.data import load_graph, write

    made = {name: folder / f"whole.{suffix}" for name, suffix in _SUFFIXES.items()}
    for name, arrays in (("npz", graph_arrays()), ("plain npz", plain_arrays()), ("series npz", series_arrays())):
        made[name] = folder / f"{name.replace(' ', '-')}.npz"
        np.savez_compressed(made[name], **arrays)
    torch.save(tensors(), made["pt"])
    dataset().to_netcdf(made["netcdf 3"], engine="scipy")
    dataset().to_netcdf(made["netcdf 4"], engine="h5netcdf", encoding={"t2m": {"chunksizes": (10, 3, 4), "zlib": True}})
    for version in (2, 3):
        made[f"zarr {version}"] = folder / f"v{version}.zarr"
        chunks = {"t2m": {"chunks": (10, 3, 4)}}
        dataset().to_zarr(made[f"zarr {version}"], zarr_format=version, encoding=chunks, consolidated=False)
    data = load_graph(made["plain npz"])
    made["shards"] = folder / "shards"
    write(data, torch.arange(NODES) * 3 // NODES, made["shards"])
    made["graphdata"].write_bytes(graphdata())
    known = Path(os.environ.get("MLDD_DATA", ".")) / GRIB
    if known.is_file():
        made["grib"].write_bytes(messages(known.read_bytes(), 6))
    write_run(made["model"].parent, made["model"], made["history"])
    return made


GRIB = "weather/era5_t2m_uk_201903/era5-2mt-2019-03-uk.grib"


def messages(content: bytes, count: int) -> bytes:
    """Return the first messages of a GRIB file of edition 1, each of which says its length."""
    end = 0
    for _ in range(count):
        begin = content.index(b"GRIB", end)  # padding may stand between them
        end = begin + int.from_bytes(content[begin + 4 : begin + 7], "big")
    return content[:end]


_SUFFIXES = {"grib": "grib", "pt": "pt", "netcdf 3": "nc", "netcdf 4": "nc4"}
_SUFFIXES |= {"graphdata": "graphdata", "model": "model", "history": "csv"}


def graphdata() -> bytes:
    """Return a file of the GraphData repository: CSR matrices pickled into arrays of objects."""
    arrays = graph_arrays()
    adjacency, features = (
        sp.csr_matrix((arrays[f"{p}_data"], arrays[f"{p}_indices"], arrays[f"{p}_indptr"]), arrays[f"{p}_shape"])
        for p in ("adj", "attr")
    )
    boxes = {}
    for name, matrix in (("adj_matrix", adjacency), ("node_attr", features)):
        boxes[name] = np.empty((), dtype=object)
        boxes[name][()] = matrix
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **boxes, node_label=arrays["labels"])
    return stream.getvalue()


def write_run(folder: Path, model: Path, history: Path) -> None:
    """Train for two steps; keep model and history."""
    from mldd.command.cli import main as mldd

    words = ["train", "sbm:hidden=4", "--solver", "adam", "--steps", "2", "--quiet", "--out", str(folder / "run")]
    assert mldd(words) == 0
    shutil.copy(folder / "run" / "model.pt", model)
    shutil.copy(folder / "run" / "history.csv", history)


# ------------------------------------------------------------------------------------------------ damage to bytes


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = int(random.integers(len(content)))
    return start, min(len(content), start + int(random.integers(1, 64)))


def _place(content: bytes, random: Random) -> int:
    """Return a place, often in the first or last bytes, where formats have their headers and directories."""
    near = int(random.integers(min(len(content), 400)))
    return (near, len(content) - 1 - near, int(random.integers(len(content))))[int(random.integers(3))]


def truncated(content: bytes, random: Random) -> bytes:
    """Cut the end off."""
    return content[: int(random.integers(len(content)))]


def flipped(content: bytes, random: Random) -> bytes:
    """Flip one to eight bits."""
    made = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        made[_place(content, random)] ^= 1 << int(random.integers(8))
    return bytes(made)


def overwritten(content: bytes, random: Random) -> bytes:
    """Write noise, zeros or ones over a span."""
    start, end = _span(content, random)
    noise = random.bytes(end - start)
    return (
        content[:start] + (noise, bytes(end - start), b"\xff" * (end - start))[int(random.integers(3))] + content[end:]
    )


def spliced(content: bytes, random: Random) -> bytes:
    """Put a piece of the file elsewhere into it, or leave one out."""
    (a, b), (c, d) = _span(content, random), _span(content, random)
    return content[:a] + content[c:d] + content[b if random.random() < 0.5 else a :]


def huge(content: bytes, random: Random) -> bytes:
    """Write a huge or negative whole number over four or eight bytes."""
    number = (2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1, 0)[int(random.integers(7))]
    size = 4 if number < 2**32 and random.random() < 0.5 else 8
    place = min(_place(content, random), max(len(content) - size, 0))
    order = ("little", "big")[int(random.integers(2))]
    return content[:place] + number.to_bytes(size, order) + content[place + size :]  # type: ignore[arg-type]


def worded(content: bytes, random: Random) -> bytes:
    """Write other digits or letters where text stands: headers of arrays, attributes, JSON, tables."""
    text = [k for k, byte in enumerate(content[:20000]) if 48 <= byte < 58 or 97 <= byte < 123]
    if not text:
        return flipped(content, random)
    place = text[int(random.integers(len(text)))]
    words = (
        b"9",
        b"-1",
        b"999999999999",
        b"nan",
        b"null",
        b"1e400",
        b"[" * 2000,
        b"\x00",
        b"\xff\xfe",
        b'"',
        b"{}",
        b"",
    )
    return content[:place] + words[int(random.integers(len(words)))] + content[place + 1 :]


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "overwritten": overwritten,
    "spliced": spliced,
    "huge number": huge,
    "other text": worded,
}


# ------------------------------------------------------------------------------------------------ odd contents


class Evil:
    """Touch a file when unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.proof}",)


def odd_array(array: Any, random: Random) -> Any:
    """Return an array of another type, shape or meaning than the one that belongs there."""
    n = len(array) if array.ndim else 1
    makers: list[Callable[[], Any]] = [
        lambda: array.astype(np.float32) if array.dtype.kind in "fiub" else array[:1],
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, np.inf),
        lambda: np.full(array.shape, 2**62),
        lambda: np.full(array.shape, -1),
        lambda: array[:0],
        lambda: array[: n // 2],
        lambda: array.reshape(-1, 1) if array.size else array,
        lambda: np.array(3),
        lambda: np.array(["a"] * n),
        lambda: np.full(array.shape, 1j),
        lambda: np.zeros(n, dtype=[("a", "i4"), ("b", "f8")]),
        lambda: np.array(["NaT"] * n, dtype="datetime64[s]"),
        lambda: np.zeros((n, 0)),
        lambda: np.zeros(array.shape, dtype=bool),
        lambda: np.broadcast_to(array.ravel()[:1], array.shape) if array.size else array,
        lambda: np.full(array.shape, 2**64 - 1, dtype=np.uint64),
        lambda: array[::-1],
        lambda: np.stack([array] * 3) if array.size < 1000 else array,
    ]
    return makers[int(random.integers(len(makers)))]()


def header(shape: str, dtype: str = "<f8") -> bytes:
    """Return an array file whose header says anything; little follows it."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


HEADERS = ("(10000000000000,)", "(-1,)", "(4294967296, 4294967296)", "(1.5,)", "((((((1,),),),),),)", "(" * 200, "None")
DTYPES = ("<f8", "|O", "<U0", "|V0", "<U99999999", "nonsense", "<M8[s]", "|S0")


def odd_archive(content: bytes, random: Random, proof: Path) -> bytes:
    """Return an archive of arrays with one that is odd, hostile, or a bomb."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[int(random.integers(len(members)))]
    what = random.random()
    if what < 0.6:
        stream = io.BytesIO()
        old = np.lib.format.read_array(io.BytesIO(members[name]), allow_pickle=False)
        np.lib.format.write_array(stream, odd_array(old, random))
        members[name] = stream.getvalue()
    elif what < 0.8:
        members[name] = header(HEADERS[int(random.integers(len(HEADERS)))], DTYPES[int(random.integers(len(DTYPES)))])
    elif what < 0.85:
        members[name] = content  # an archive in the archive
    elif what < 0.9:
        members[name] = pickle.dumps(Evil(proof))
    elif what < 0.95:
        del members[name]
    else:
        stream = io.BytesIO()
        box = np.empty(1, dtype=object)
        box[0] = Evil(proof)
        np.lib.format.write_array(stream, box, allow_pickle=True)
        members[name] = stream.getvalue()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, member in members.items():
            archive.writestr(key, member)
    return made.getvalue()


def bomb(path: Path, content: bytes, size: int) -> None:
    """Write an archive of arrays with one more: few bytes that are `size` bytes of zeros once they are expanded."""
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("bomb.npy", "w", force_zip64=True) as out:
            out.write(header(f"({size // 8},)")[:-64])
            piece = bytes(2**24)
            for _ in range(size // len(piece)):
                out.write(piece)


def odd_tensors(random: Random, proof: Path) -> bytes:
    """Return a file of torch with something odd or hostile in it."""
    made: dict[str, Any] = dict(tensors())
    name = list(made)[int(random.integers(len(made)))]
    x = made[name]
    makers: list[Callable[[], Any]] = [
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.zeros(1, 1).expand(10**9, 10**3),
        lambda: torch.empty(10**6, device="meta"),
        lambda: x.to(torch.complex64),
        lambda: x.to(torch.bfloat16),
        lambda: x.to_sparse(),
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (2**40, 2**20)),
        lambda: x.double() * float("nan"),
        lambda: x[:0],
        lambda: x.reshape(-1),
        lambda: torch.tensor(3),
        lambda: x.to(torch.int8),
        lambda: -x - 5,
        lambda: x.bool(),
        lambda: torch.nn.Parameter(x.double()),
        lambda: [x, x],
        lambda: "text",
        lambda: Evil(proof),
        lambda: torch.nn.Linear(2, 2),
        lambda: made,
        lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    ]
    made[name] = makers[int(random.integers(len(makers)))]()
    stream = io.BytesIO()
    torch.save(made, stream)
    return stream.getvalue()


ODD = (-1, 0, 2**31, 2**62, 2**64, float("nan"), float("inf"), "", "text", None, True, [], {}, [[[]]], (1, 2))


def leaves(tree: Any) -> list[tuple[Any, Any]]:
    """Return all places in nested dicts and lists, as container and key."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in items] + [place for _, value in items for place in leaves(value)]


def odd_tree(content: bytes, random: Random, proof: Path) -> bytes:
    """Return a file of torch in which one entry is something else."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
    places = leaves(tree)
    place, key = places[int(random.integers(len(places)))]
    if isinstance(place[key], torch.Tensor) and random.random() < 0.7:
        odd = odd_array(place[key].numpy(), random)
        place[key] = torch.from_numpy(np.array(odd)) if odd.dtype.kind in "fiub" and odd.dtype != np.uint64 else "text"
    elif random.random() < 0.1:
        place[key] = Evil(proof)
    elif random.random() < 0.2:
        del place[key]
    else:
        place[key] = ODD[int(random.integers(len(ODD)))]
    stream = io.BytesIO()
    torch.save(tree, stream)
    return stream.getvalue()


_ATTRIBUTES = "units calendar scale_factor add_offset _FillValue missing_value valid_range valid_min".split()
_TEXTS = (
    "hours since 9999999-01-01",
    "parsecs",
    "months since 2020-01-31",
    "days since nowhere",
    "julian",
    "\u00e9",
    "",
)


def odd_dataset(path: Path, random: Random, **options: Any) -> None:
    """Write a data set with odd attributes, types or sizes in the place of a whole one."""
    made = dataset()
    name = str(list(made.variables)[int(random.integers(len(made.variables)))])
    variable, what = made[name], random.random()
    attribute = _ATTRIBUTES[int(random.integers(len(_ATTRIBUTES)))]
    odd: tuple[Any, ...] = (0.0, -1, 1e308, np.nan, 2**31 - 1, np.array([1, 2, 3]), *_TEXTS)
    if what < 0.7:
        encoding = {"units": "hours since 2020-01-01"} if name == "time" else {}
        if name == "time":
            made = made.assign_coords(time=("time", np.arange(TIMES), {**encoding, "calendar": "standard"}))
        made[name].attrs[attribute] = odd[int(random.integers(len(odd)))]
    elif what < 0.9:
        array = odd_array(variable.values, random)
        made = made.drop_vars(name)
        made[name] = (tuple(f"d{k}" for k in range(array.ndim)), array)
    else:
        made = made.drop_vars(name)
    if path.is_dir():
        shutil.rmtree(path)
    made.to_netcdf(path, **options) if options else made.to_zarr(path, zarr_format=2, consolidated=False)


def resealed(folder: Path) -> None:
    """Write the checksums of the parts anew into the manifest of shards, as one who means harm would."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        for entry in manifest["parts"]:
            content = (folder / entry["file"]).read_bytes()
            entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    except (ValueError, KeyError, TypeError, OSError):
        return
    path.write_text(json.dumps(manifest))


if __name__ == "__main__":
    main()
