"""Graphs with several kinds of nodes and edges, as torch_geometric's HeteroData and Anemoi keep them, without trust."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import way_to_install
from mldd.loop import UntrustedError, check_torch_file, replacing, unreadable
from mldd.problems.data import DataError, File

Kind = tuple[str, str, str]


@dataclass(frozen=True)
class TypedGraph:
    """Nodes of several types, and edges from one type to another.

    Parameters
    ----------
    nodes : dict of str to dict
        By type its attributes: ``x``, shape (n, k), and tensors with a row per node; anything plain else.
    edges : dict of (str, str, str) to dict
        By types of source and target, with a word between them: ``edge_index``, shape (2, E), the number of the source
        above that of the target, tensors with a row per edge, and anything plain else.
    """

    nodes: dict[str, dict[str, Any]]
    edges: dict[Kind, dict[str, Any]]

    def size(self, name: str) -> int:
        """Return the number of nodes of a type.

        Parameters
        ----------
        name : str
            The type.
        """
        return len(self.nodes[name]["x"])

    def index(self, kind: Kind) -> Tensor:
        """Return the ends of edges, shape (2, E), int64.

        Parameters
        ----------
        kind : (str, str, str)
            The type of the edges.
        """
        index: Tensor = self.edges[kind]["edge_index"]
        return index.long()

    def role(self, kind: Kind) -> str:
        """Return what edges are for: encoder, processor or decoder, where the processed nodes have edges among them.

        Parameters
        ----------
        kind : (str, str, str)
            The type of the edges.
        """
        source, _, target = kind
        inner = {k[0] for k in self.edges if k[0] == k[2]}
        if source == target:
            return "processor"
        if (source in inner) == (target in inner):
            return "between levels"
        return "encoder" if target in inner else "decoder"


def read_typed_graph(file: File) -> TypedGraph:
    """Return the graph in a ``.pt`` with a HeteroData; nothing that the file names is executed but what is listed here.

    Allowed are torch's tensors, plain Python, and of torch_geometric HeteroData, BaseStorage, NodeStorage, EdgeStorage,
    EdgeAttr and TensorAttr.

    Parameters
    ----------
    file : File
        The file.

    Raises
    ------
    DataError
        It asks for anything else, holds something else, or edges to nodes that are not there.
    """
    where, content = file.name, file.content()
    try:
        check_torch_file(content, where)
        with torch.serialization.safe_globals(_allowed()):
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        fields = loaded.to_dict()
        nodes = {str(key): dict(of) for key, of in fields.items() if isinstance(key, str) and key != "_global_store"}
        edges = {key: dict(of) for key, of in fields.items() if isinstance(key, tuple)}
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except ModuleNotFoundError:
        raise DataError(
            f"{where}: expected torch_geometric, whose HeteroData this is, got none; "
            f"{way_to_install('torch_geometric')}"
        ) from None
    except Exception as error:  # a hostile or damaged file can raise anything
        raise DataError(
            f"{where}: expected a HeteroData of plain tensors, got {len(content)} bytes ({unreadable(error)}); save "
            "the graph of Anemoi (system.input.graph) alone"
        ) from None
    made = TypedGraph(nodes, edges)
    _check(made, where)
    return made


def write_typed_graph(graph: TypedGraph, path: Path) -> None:
    """Write a graph as the HeteroData that Anemoi reads.

    Parameters
    ----------
    graph : TypedGraph
        With contiguous tensors.
    path : Path
        A file, which is replaced whole.
    """
    from torch_geometric.data import HeteroData

    made = HeteroData()
    for name, of in (*graph.nodes.items(), *graph.edges.items()):
        for key, value in of.items():
            made[name][key] = value
    with replacing(path) as new:
        torch.save(made, new)


def _allowed() -> list[Any]:
    from torch_geometric.data import feature_store, graph_store, hetero_data, storage

    return [
        hetero_data.HeteroData,
        storage.BaseStorage,
        storage.NodeStorage,
        storage.EdgeStorage,
        graph_store.EdgeAttr,
        feature_store.TensorAttr,
    ]


def _check(graph: TypedGraph, where: str) -> None:
    """Refuse nodes without coordinates, and edges that lead nowhere or have other attributes than one per edge."""
    if not graph.nodes or not graph.edges:
        raise DataError(f"{where}: expected types of nodes and edges, got {len(graph.nodes)} and {len(graph.edges)}")
    for name, of in graph.nodes.items():
        x = of.get("x")
        if not isinstance(x, Tensor) or x.dim() != 2 or not len(x):
            raise DataError(f"{where}: expected a tensor x of shape (n, k) for nodes {name}, got {_kind(x)}")
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"{where}: expected finite x of nodes {name}, got {int((~torch.isfinite(x)).sum())} others")
    for kind, of in graph.edges.items():
        index = of.get("edge_index")
        name = " ".join(kind)
        if not isinstance(index, Tensor) or index.dim() != 2 or len(index) != 2 or index.dtype.is_floating_point:
            raise DataError(
                f"{where}: expected whole numbers edge_index of shape (2, E) for {name}, got {_kind(index)}"
            )
        for row, end in ((index[0], kind[0]), (index[1], kind[2])):
            if end not in graph.nodes:
                raise DataError(f"{where}: expected nodes {end} for the edges {name}, got {', '.join(graph.nodes)}")
            n = graph.size(end)
            if row.numel() and not (0 <= int(row.min()) and int(row.max()) < n):
                raise DataError(
                    f"{where}: expected edges {name} between nodes 0..{n - 1} of {end}, got "
                    f"{int(row.min())}..{int(row.max())}"
                )


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def per_row(value: Mapping[str, Any], rows: int) -> dict[str, Tensor]:
    """Return the attributes that have a row each for `rows` nodes or edges.

    Parameters
    ----------
    value : dict
        Attributes of a type.
    rows : int
        Nodes or edges of it.
    """
    return {
        key: tensor
        for key, tensor in value.items()
        if key != "edge_index" and isinstance(tensor, Tensor) and tensor.dim() and len(tensor) == rows
    }
