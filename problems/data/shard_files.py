"""The partitioned file format: every rank reads its own parts and nothing else.

A folder holds ``manifest.json`` (sizes, classes, and of every part file name, size and SHA-256) and one ``.npz`` of
plain arrays per part. Files are written under temporary names and renamed, the manifest last, so that a folder with a
manifest is whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from mldd.loop import UntrustedError, check_regular, replacing
from mldd.problems.data.checksums import digest
from mldd.problems.data.contents import SPLITS, UNLABELLED, DataError, one_line
from mldd.problems.data.datasets import GraphData
from mldd.problems.data.formats import Archive, checked_features, csr, integers, of_edges
from mldd.problems.data.shards import (
    CutGraph,
    HaloNodes,
    NodeData,
    Shard,
    ShardEdges,
    checked_part,
    cutting,
    joined,
    shares,
)
from mldd.ranks import Communicator

Array = NDArray[Any]
MANIFEST = "manifest.json"
FORMAT, VERSION = "mldd shards", 2
# The arrays of a part file, by the records of a shard, besides the numbers and features of its nodes.
_EDGES, _HALO, _NODES = ("indptr", "indices"), ("owner", "index"), ("labels", *SPLITS)
_OF_EDGES = {"edge_weight": "weights", "edge_attr": "attributes"}  # where the graph has them
_CSR = ("data", "indices", "indptr", "shape")
_SIZES = ("nodes", "entries", "features", "classes")  # whole numbers of a manifest
_PART = {"file": str, "sha256": str, "nodes": int, "halo": int, "entries": int, "bytes": int}
_WAY = "write it anew with `mldd partition PROBLEM --write DIR`"


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
    place, of = Path(folder), checked_part(part, data.graph.nodes)
    place.mkdir(parents=True, exist_ok=True)
    manifest = place / MANIFEST
    stale = {str(p.get("file")) for p in _parts_of(manifest)}
    manifest.unlink(missing_ok=True)  # until all parts are there, the folder is no graph
    listed = [_write_part(shard, place / f"part-{k:05d}.npz") for k, shard in enumerate(cutting(data, of))]
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
    arrays = {"numbers": shard.numbers}
    for record, names in ((shard.edges, _EDGES), (shard.halo, _HALO), (shard.data, _NODES)):
        arrays |= {name: getattr(record, name) for name in names}
    on_edges = {name: getattr(shard.edges, field) for name, field in _OF_EDGES.items()}
    arrays |= {name: values for name, values in on_edges.items() if values is not None}
    x = shard.data.features
    pieces = {key: getattr(x, key) for key in _CSR} if sp.issparse(x) else {"dense": x}
    arrays |= {f"features_{key}": np.asarray(piece) for key, piece in pieces.items()}
    with replacing(path) as new:
        with open(new, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        sha256, size = digest(new), new.stat().st_size
    counts = {"nodes": shard.own, "halo": shard.halo.size, "entries": len(shard.edges.indices), "bytes": size}
    return {"file": path.name, "sha256": sha256} | counts


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
        check_regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: expected a manifest of shards, got {error.strerror or error}; {_WAY}") from None
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: expected a manifest of shards, got no JSON; {_WAY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected a manifest of shards (format {FORMAT!r}), got another file; {_WAY}")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: expected version {VERSION} of the format, got {content.get('version')!r}; {_WAY}")
    parts: Any = content.get("parts")
    good = (
        isinstance(parts, list)
        and bool(parts)
        and all(isinstance(p, dict) and all(_is(p.get(k), t) for k, t in _PART.items()) for p in parts)
        and all(_is(content.get(name), int) and content[name] > 0 for name in _SIZES if name != "entries")
        and isinstance(content.get("name"), str)
        and content.get("metric") in ("accuracy", "auc")
    )
    if not good:
        raise DataError(f"{path}: expected sizes, classes, metric and a list of parts, got others; {_WAY}")
    total = sum(p["nodes"] for p in parts)
    if total != content["nodes"] or min(p["nodes"] for p in parts) < 1:
        raise DataError(f"{path}: expected parts of {content['nodes']} nodes together, got {total}; {_WAY}")
    return content


def _is(value: Any, kind: type) -> bool:
    """Say whether a value of a manifest is text, or a number of things that a machine can count."""
    return type(value) is kind and (not isinstance(value, int) or 0 <= value < 2**62)


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
    return digest(Path(folder) / MANIFEST)


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
        check_regular(path)
        found, size = digest(path), path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: expected part {k} of the graph, got {error.strerror or error}; {_WAY}") from None
    except UntrustedError as error:
        raise DataError(str(error)) from None
    if found != entry["sha256"]:
        what = f"{size} of {entry['bytes']} bytes" if size != entry["bytes"] else f"sha256 {found[:12]}..."
        raise DataError(
            f"{path}: expected sha256 {entry['sha256'][:12]}..., got {what}: damaged or of another graph; {_WAY}"
        )
    try:
        return _shard(dict(Archive(path, str(path))), manifest, k, path)
    except DataError:
        raise
    except Exception as error:  # whoever has written the arrays has written their checksum, too
        raise DataError(f"{path}: expected the arrays of a shard, got {one_line(error)}; {_WAY}") from None


def _shard(found: dict[str, Array], manifest: dict[str, Any], k: int, path: Path) -> Shard:
    """Put a shard together and see that its arrays fit together."""
    sizes, m, where = np.array([p["nodes"] for p in manifest["parts"]]), manifest["parts"][k]["nodes"], str(path)
    numbers, labels, *rest = (integers(found[name], where, name) for name in ("numbers", "labels", *_EDGES, *_HALO))
    indptr, indices, owner, index = rest
    masks, on_edges = [found[name] for name in SPLITS], {name: found[name] for name in _OF_EDGES if name in found}
    if any(array.shape != (m,) for array in (numbers, labels, *masks)):
        raise DataError(f"{path}: expected arrays of {m} nodes that fit together, got others; {_WAY}")
    shard = Shard(
        whole=CutGraph(manifest["name"], manifest["classes"], manifest["metric"], sizes),
        numbers=numbers,
        part=np.full(m, k),
        edges=ShardEdges(indptr, indices, *of_edges(on_edges, len(indices), where)),
        halo=HaloNodes(owner, index),
        data=NodeData(_features(found, where), labels, *masks),
    )
    if not (_counts(shard, m, manifest) and _numbered(shard, k, manifest)):
        raise DataError(f"{path}: expected arrays of {m} nodes that fit together, got others; {_WAY}")
    return shard


def _features(found: dict[str, Array], where: str) -> Any:
    if "features_dense" in found:
        return checked_features(found["features_dense"], where)
    data, indices, indptr, shape = (found[f"features_{key}"] for key in _CSR)
    return csr(data, indices, indptr, shape, f"{where} (features)")


def _counts(shard: Shard, m: int, manifest: dict[str, Any]) -> bool:
    """Say whether shapes and types are those of a shard of m nodes."""
    edges, halo, data = shard.edges, shard.halo, shard.data
    return (
        all(getattr(data, name).dtype == np.bool_ for name in SPLITS)
        and data.features.shape == (m, manifest["features"])
        and all(array.ndim == 1 for array in (edges.indptr, edges.indices, halo.owner, halo.index))
        and edges.indptr.shape == (m + 1,)
        and edges.indptr[0] == 0
        and edges.indptr[-1] == len(edges.indices)
        and bool((np.diff(edges.indptr) >= 0).all())
        and len(halo.index) == halo.size
    )


def _numbered(shard: Shard, k: int, manifest: dict[str, Any]) -> bool:
    """Say whether all numbers of nodes, parts and classes are those of nodes, parts and classes."""
    columns, sizes, halo, labels = shard.edges.indices, shard.whole.sizes, shard.halo, shard.data.labels
    return (
        (len(columns) == 0 or (columns.min() >= 0 and columns.max() < shard.own + halo.size))
        and shard.numbers.min() >= 0
        and shard.numbers.max() < manifest["nodes"]
        and bool((np.diff(shard.numbers) > 0).all())
        and bool(((halo.owner >= 0) & (halo.owner < len(sizes)) & (halo.owner != k)).all())
        and bool(((halo.index >= 0) & (halo.index < sizes[halo.owner])).all())
        and bool(((labels >= UNLABELLED) & (labels < shard.whole.classes)).all())
    )
