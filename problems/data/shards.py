"""Graphs cut into shards, and the partitioned file format: every rank reads its own parts and nothing else.

A folder holds ``manifest.json`` (sizes, classes, and of every part file name, size and SHA-256) and one ``.npz`` of
plain arrays per part. Files are written under temporary names and renamed, the manifest last, so that a folder with a
manifest is whole. In a shard the columns of the adjacency are numbered anew: own nodes first, ascending by their global
number, then the halo, ascending by owner.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph, kind_of
from mldd.loop import replacing
from mldd.problems.data.contents import SPLITS, UNLABELLED, DataError
from mldd.problems.data.datasets import GraphData
from mldd.problems.data.features import from_tensor
from mldd.ranks import Communicator

Array = NDArray[Any]
Ints = NDArray[np.int64]
MANIFEST = "manifest.json"
FORMAT, VERSION = "mldd shards", 1
_ARRAYS = ("numbers", "indptr", "indices", "owner", "index", "labels")  # of a part file, besides the masks
_OF_EDGES = ("weights", "edge_attributes")  # in a part file where the graph has them
_SIZES = ("nodes", "entries", "features", "classes")  # whole numbers of a manifest
_PART = {"file": str, "sha256": str, "nodes": int, "halo": int, "entries": int, "bytes": int}
_PIECE = 2**20  # bytes
_WAY = "write it anew with `mldd partition PROBLEM --write DIR`"


@dataclass(frozen=True, eq=False)
class Shard:
    """What one rank, or one part, holds of a graph: its m own nodes with all their edges, and where its halo lives.

    Parameters
    ----------
    name : str
        Of the graph.
    classes : int
        Number of classes.
    metric : str
        "accuracy" or "auc".
    sizes : ndarray, shape (parts,), int64
        Nodes of every part of the graph.
    numbers : ndarray, shape (m,), int64
        Global numbers of the own nodes, ascending within each part.
    part : ndarray, shape (m,), int64
        Part of every own node, ascending.
    indptr, indices : ndarray, shapes (m + 1,) and (E,), int64
        Adjacency in compressed rows: columns 0..m-1 are the own nodes, m..m+h-1 the halo.
    weights : ndarray, shape (E,), or None
        Of the edges.
    owner, index : ndarray, shape (h,), int64
        The part that owns every node of the halo (once `joined`: the rank), ascending, and the node's number there.
    features : ndarray or csr_matrix, shape (m, F)
        Of the own nodes.
    labels : ndarray, shape (m,), int64
        Of the own nodes, -1 where there is none.
    train, validation, test : ndarray, shape (m,), bool
        Masks of the own nodes.
    edge_attributes : ndarray, shape (E, k), or None
        Of the edges that lead to the own nodes.
    """

    name: str
    classes: int
    metric: str
    sizes: Ints
    numbers: Ints
    part: Ints
    indptr: Ints
    indices: Ints
    weights: Array | None
    owner: Ints
    index: Ints
    features: Any
    labels: Ints
    train: Array
    validation: Array
    test: Array
    edge_attributes: Array | None = None

    @property
    def own(self) -> int:
        """Number m of own nodes."""
        return len(self.numbers)

    @property
    def halo(self) -> int:
        """Number h of nodes of the halo."""
        return len(self.owner)

    @property
    def nodes(self) -> int:
        """Number of nodes of the whole graph."""
        return int(self.sizes.sum())

    @property
    def bytes(self) -> int:
        """Bytes of its arrays."""
        x = self.features
        pieces = [x.data, x.indices, x.indptr] if sp.issparse(x) else [x]
        arrays = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        return sum(int(a.nbytes) for a in (*arrays, *(p for p in pieces if p is not x)))

    def adjacency(self, weighted: bool = False) -> Any:
        """Return the edges of the own nodes, csr_matrix of shape (m, m + h).

        Parameters
        ----------
        weighted : bool
            Whether entries are the weights of edges, if there are any, or ones.
        """
        values = np.ones(len(self.indices)) if self.weights is None or not weighted else self.weights
        return self.on_edges(values)

    def on_edges(self, values: Array) -> Any:
        """Return the matrix with an entry per edge, csr_matrix of shape (m, m + h).

        Parameters
        ----------
        values : ndarray, shape (E,)
            In the order of `indices`.
        """
        return sp.csr_matrix((values, self.indices, self.indptr), shape=(self.own, self.own + self.halo))

    @cached_property
    def inside(self) -> Graph:
        """The graph of the own nodes, without the edges to the halo."""
        square = self.adjacency(weighted=True)[:, : self.own].tocoo()
        edges = torch.from_numpy(np.stack([square.row, square.col]).astype(np.int64))
        return Graph.from_edges(edges, self.own, None if self.weights is None else torch.from_numpy(square.data))


# ------------------------------------------------------------------------------------------------ cutting


def cut(data: GraphData, part: Tensor) -> list[Shard]:
    """Return one shard per part of a graph, all in memory.

    Parameters
    ----------
    data : GraphData
        The whole graph.
    part : LongTensor, shape (n,)
        The part of every node, 0..parts-1, each of which occurs.

    Raises
    ------
    ValueError
        A part without nodes, or numbers that do not fit.
    """
    return list(_cutting(data, _checked(part, data.graph.nodes)))


def _checked(part: Tensor, nodes: int) -> Ints:
    """Return the part of every node; refuse what `cut` refuses."""
    if part.dtype != torch.int64 or part.shape != (nodes,) or int(part.min()) < 0:
        raise ValueError(f"`part` must be the part 0, 1, ... of each of {nodes} nodes, int64, got {kind_of(part)}")
    of = part.cpu().numpy()
    sizes = np.bincount(of)
    if not sizes.all():
        raise ValueError(f"every part needs a node, got none in part {int(sizes.argmin())}; number the parts anew")
    return np.asarray(of, dtype=np.int64)


def _cutting(data: GraphData, of: Ints) -> Iterator[Shard]:
    """Make one shard after the other."""
    n, sizes = data.graph.nodes, np.bincount(of)
    order, ends = np.argsort(of, kind="stable"), np.cumsum(sizes)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n) - np.repeat(ends - sizes, sizes)
    rows, attributes = data.graph.scipy(weighted=True), data.graph.edge_attributes
    features = from_tensor(data.features)
    for k in range(len(sizes)):
        own = order[ends[k] - sizes[k] : ends[k]]
        local = rows[own]
        columns = local.indices.astype(np.int64)
        outside = of[columns] != k
        keys = of[columns[outside]] * n + columns[outside]
        halo = np.unique(keys)
        numbered = place[columns]
        numbered[outside] = len(own) + np.searchsorted(halo, keys)
        masks = {name: getattr(data, name).numpy()[own] for name in SPLITS}
        yield Shard(
            name=data.name,
            classes=data.classes,
            metric=data.metric,
            sizes=sizes,
            numbers=own,
            part=np.full(len(own), k),
            indptr=local.indptr.astype(np.int64),
            indices=numbered,
            weights=None if data.graph.weights is None else local.data,
            owner=halo // n,
            index=place[halo % n],
            features=features[own],
            labels=data.labels.numpy()[own],
            edge_attributes=None if attributes is None else attributes.numpy()[_entries(rows.indptr, own)],
            **masks,
        )


def _entries(indptr: Array, rows: Ints) -> Ints:
    """Return the numbers of the entries of some rows, row by row."""
    lengths = np.diff(indptr)[rows]
    ends = np.cumsum(lengths)
    return np.repeat(indptr[rows] - ends + lengths, lengths) + np.arange(lengths.sum())


def shares(parts: int, ranks: int) -> list[range]:
    """Return the consecutive parts of every rank, as `Communicator.share` has them.

    Parameters
    ----------
    parts, ranks : int
        How many there are.

    Raises
    ------
    DataError
        Ranks without a part.
    """
    if ranks > parts:
        raise DataError(f"a graph of {parts} parts needs at most {parts} ranks, got {ranks}; cut it into more parts")
    return [range(rank * parts // ranks, (rank + 1) * parts // ranks) for rank in range(ranks)]


def joined(shards: Sequence[Shard], ranks: int) -> Shard:
    """Return the shard of a rank, joined of consecutive parts; owners of its halo become ranks.

    Parameters
    ----------
    shards : sequence of Shard
        The parts of one rank, as `shares` gives them out.
    ranks : int
        Number of ranks.
    """
    sizes, groups = shards[0].sizes, shares(len(shards[0].sizes), ranks)
    rank_of = np.repeat(np.arange(ranks), [len(group) for group in groups])
    ends = np.cumsum(sizes)
    starts = ends - sizes
    base = starts - starts[[group.start for group in groups]][rank_of]  # first node of a part within its rank
    me = rank_of[shards[0].part[0]]
    m, n = sum(s.own for s in shards), int(sizes.sum()) + 1
    keys = [rank_of[s.owner] * n + base[s.owner] + s.index for s in shards]
    halo = np.unique(np.concatenate([k[k // n != me] for k in keys]))
    columns = []
    for s, key in zip(shards, keys, strict=True):
        place = np.where(key // n == me, key % n, m + np.searchsorted(halo, key))
        columns.append(np.concatenate([np.arange(s.own) + base[s.part[0]], place])[s.indices])
    degrees = np.concatenate([np.diff(s.indptr) for s in shards])
    stacked = {
        name: np.concatenate([getattr(s, name) for s in shards]) for name in ("numbers", "part", "labels", *SPLITS)
    }
    first = shards[0]
    return Shard(
        name=first.name,
        classes=first.classes,
        metric=first.metric,
        sizes=sizes,
        indptr=np.concatenate([[0], np.cumsum(degrees)]),
        indices=np.concatenate(columns),
        weights=_joined([s.weights for s in shards]),
        owner=halo // n,
        index=halo % n,
        features=_stacked([s.features for s in shards]),
        edge_attributes=_joined([s.edge_attributes for s in shards]),
        **stacked,
    )


def _joined(pieces: Sequence[Array | None]) -> Array | None:
    there = [piece for piece in pieces if piece is not None]
    return np.concatenate(there) if there else None


def _stacked(pieces: Sequence[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    return sp.vstack(pieces, format="csr") if sp.issparse(pieces[0]) else np.concatenate(pieces)


# ------------------------------------------------------------------------------------------------ writing


def write(data: GraphData, part: Tensor, folder: str | os.PathLike[str]) -> Path:
    """Write the parts of a graph into `folder`, one after the other, and return the path of the manifest.

    Parts of an older graph there are replaced. Besides the source no more than one part is held at a time.

    Parameters
    ----------
    data : GraphData
        The whole graph.
    part : LongTensor, shape (n,)
        The part of every node, 0..parts-1, each of which occurs.
    folder : path
        It is made where there is none.

    Raises
    ------
    ValueError
        As `cut`.
    OSError
        The folder cannot be written to.
    """
    place, of = Path(folder), _checked(part, data.graph.nodes)
    place.mkdir(parents=True, exist_ok=True)
    manifest = place / MANIFEST
    stale = {str(p.get("file")) for p in _parts_of(manifest)}
    manifest.unlink(missing_ok=True)  # until all parts are there, the folder is no graph
    listed = [_write_part(shard, place / f"part-{k:05d}.npz") for k, shard in enumerate(_cutting(data, of))]
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "name": data.name, "metric": data.metric}
    content |= {"nodes": data.graph.nodes, "entries": data.graph.edges, "classes": data.classes}
    content |= {"features": data.features.shape[1], "parts": listed}
    with replacing(manifest) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name in stale - {entry["file"] for entry in listed}:
        if Path(name).name == name:
            (place / name).unlink(missing_ok=True)
    return manifest


def _parts_of(manifest: Path) -> list[dict[str, Any]]:
    """Return what an older manifest lists, nothing where there is none that can be read."""
    try:
        return list(read_manifest(manifest.parent)["parts"]) if manifest.is_file() else []
    except DataError:
        return []


def _write_part(shard: Shard, path: Path) -> dict[str, Any]:
    arrays = {name: getattr(shard, name) for name in (*_ARRAYS, *SPLITS)}
    arrays |= {name: getattr(shard, name) for name in _OF_EDGES if getattr(shard, name) is not None}
    x = shard.features
    keys = ("data", "indices", "indptr", "shape")
    pieces = {key: getattr(x, key) for key in keys} if sp.issparse(x) else {"dense": x}
    arrays |= {f"features_{key}": np.asarray(piece) for key, piece in pieces.items()}
    with replacing(path) as new:
        with open(new, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        digest, size = _checksum(new), new.stat().st_size
    counts = {"nodes": shard.own, "halo": shard.halo, "entries": len(shard.indices), "bytes": size}
    return {"file": path.name, "sha256": digest} | counts


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a folder, checked.

    Parameters
    ----------
    folder : path
        Of the shards.

    Raises
    ------
    DataError
        There is none, it is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: expected a manifest of shards, got {error.strerror or error}; {_WAY}") from None
    except ValueError:
        raise DataError(f"{path}: expected a manifest of shards, got no JSON; {_WAY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected a manifest of shards (format {FORMAT!r}), got another file; {_WAY}")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: expected version {VERSION} of the format, got {content.get('version')!r}; {_WAY}")
    parts: Any = content.get("parts")
    good = (
        isinstance(parts, list)
        and bool(parts)
        and all(isinstance(p, dict) and all(isinstance(p.get(k), t) for k, t in _PART.items()) for p in parts)
        and all(isinstance(content.get(name), int) and content[name] > 0 for name in _SIZES if name != "entries")
        and isinstance(content.get("name"), str)
        and content.get("metric") in ("accuracy", "auc")
    )
    if not good:
        raise DataError(f"{path}: expected sizes, classes, metric and a list of parts, got others; {_WAY}")
    total = sum(p["nodes"] for p in parts)
    if total != content["nodes"] or min(p["nodes"] for p in parts) < 1:
        raise DataError(f"{path}: expected parts of {content['nodes']} nodes together, got {total}; {_WAY}")
    return content


def identity(folder: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the manifest of a folder, which holds those of all parts.

    Parameters
    ----------
    folder : path
        Of the shards.

    Raises
    ------
    DataError
        There is no manifest.
    """
    read_manifest(folder)
    return _checksum(Path(folder) / MANIFEST)


def read(folder: str | os.PathLike[str], rank: int = 0, ranks: int = 1) -> Shard:
    """Return the shard of a rank: its consecutive share of the parts, verified and joined.

    Parameters
    ----------
    folder : path
        Of the shards.
    rank, ranks : int
        Which rank of how many.

    Raises
    ------
    DataError
        More ranks than parts; a part is missing, truncated, of another graph, or makes no sense.
    """
    manifest = read_manifest(folder)
    mine = shares(len(manifest["parts"]), ranks)[rank]
    return joined([_read_part(Path(folder), manifest, k) for k in mine], ranks)


def read_together(folder: str | os.PathLike[str], comm: Communicator) -> Shard:
    """Return the shard of this rank; where one rank fails, all raise what it says.

    Parameters
    ----------
    folder : path
        Of the shards.
    comm : Communicator
        The ranks that share the graph.

    Raises
    ------
    DataError
        As `read`, on all ranks.
    """
    shard, problem = None, ""
    try:
        shard = read(folder, comm.rank, comm.ranks)
    except DataError as error:
        problem = str(error)
    problems = [text for text in comm.gather_items(problem) if text]
    if problems or shard is None:
        raise DataError(problems[0])
    return shard


def _read_part(folder: Path, manifest: dict[str, Any], k: int) -> Shard:
    entry = manifest["parts"][k]
    path = folder / Path(entry["file"]).name
    try:
        found, size = _checksum(path), path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: expected part {k} of the graph, got {error.strerror or error}; {_WAY}") from None
    if found != entry["sha256"]:
        what = f"{size} of {entry['bytes']} bytes" if size != entry["bytes"] else f"sha256 {found[:12]}..."
        raise DataError(
            f"{path}: expected sha256 {entry['sha256'][:12]}..., got {what}: damaged or of another graph; {_WAY}"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _shard(arrays, manifest, k, path)
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected the arrays of a shard, got {error}; {_WAY}") from None


def _shard(arrays: dict[str, Array], manifest: dict[str, Any], k: int, path: Path) -> Shard:
    """Put a shard together and see that its arrays fit together."""
    sizes = np.array([p["nodes"] for p in manifest["parts"]])
    if "features_dense" in arrays:
        features: Any = arrays["features_dense"]
    else:
        pieces = tuple(arrays[f"features_{key}"] for key in ("data", "indices", "indptr"))
        features = sp.csr_matrix(pieces, shape=tuple(arrays["features_shape"]))
    m = int(sizes[k])
    shard = Shard(
        name=manifest["name"],
        classes=manifest["classes"],
        metric=manifest["metric"],
        sizes=sizes,
        part=np.full(m, k),
        features=features,
        **{name: arrays[name] for name in (*_ARRAYS, *SPLITS)},
        **{name: arrays.get(name) for name in _OF_EDGES},
    )
    columns, span = shard.indices, shard.own + shard.halo
    good = (
        all(len(getattr(shard, name)) == m for name in ("numbers", "labels", *SPLITS))
        and features.shape == (m, manifest["features"])
        and shard.indptr.shape == (m + 1,)
        and shard.indptr[-1] == len(columns)
        and bool((np.diff(shard.indptr) >= 0).all())
        and all(len(arrays[name]) == len(columns) for name in _OF_EDGES if name in arrays)
        and (len(columns) == 0 or (columns.min() >= 0 and columns.max() < span))
        and len(shard.index) == shard.halo
        and bool(((shard.owner >= 0) & (shard.owner < len(sizes)) & (shard.owner != k)).all())
        and bool(((shard.index >= 0) & (shard.index < sizes[shard.owner])).all())
        and bool(((shard.labels >= UNLABELLED) & (shard.labels < shard.classes)).all())
    )
    if not good:
        raise DataError(f"{path}: expected arrays of {m} nodes that fit together, got others; {_WAY}")
    return shard
