"""Methods that cut a graph into parts: one function each, behind `mldd.graph.partitioning.partition`.

Every function takes a `Cut` and returns the part of every node, shape (n,), int64. Parts may come out empty or heavier
than asked for; `partition` repairs the former. All are deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.graph import bisection
from mldd.graph.graph import Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_WEIGHT, _LARGEST_SUM = 1000.0, 2.0**30  # of integer weights; sums have to fit into 32 bits
_PETSC_ORDER = ("parmetis", "ptscotch", "chaco", "party", "average")


@dataclass(frozen=True, eq=False)
class Cut:
    """What is to be cut, and how.

    Attributes
    ----------
    graph : Graph
        Symmetric, with at least one edge.
    parts, seed : int
        At least 2 parts, fewer than nodes.
    imbalance : float
        A part may weigh as much as `heaviest` says.
    weights : array of float64, shape (n,), optional
        Of the nodes; None counts them.
    coordinates : array of float64, shape (n, d), optional
        Cartesian.
    """

    graph: Graph
    parts: int
    seed: int = 0
    imbalance: float = 0.03
    weights: Floats | None = None
    coordinates: Floats | None = None

    @property
    def load(self) -> Floats:
        """Weights of the nodes, ones where there are none."""
        return np.ones(self.graph.nodes) if self.weights is None else self.weights


def heaviest(weights: Floats, parts: int, imbalance: float) -> Floats:
    """Return what a part may weigh: max((1 + e) m, m + (1 - 1 / p) w), m the mean over p parts, w the heaviest node.

    The second term is what list scheduling reaches whatever the weights are (Graham, doi:10.1137/0117039).

    Parameters
    ----------
    weights : array, shape (n,) or (n, c)

    Returns
    -------
    array, shape () or (c,)
    """
    mean = weights.sum(axis=0) / parts
    bound = np.maximum((1 + imbalance) * mean, mean + (1 - 1 / parts) * weights.max(axis=0))
    return np.asarray(bound * (1 + 1e-12), dtype=np.float64)  # room for the rounding of sums


def integers(weights: Floats, *, least: int) -> Ints:
    """Scale weights to integers: the largest becomes 1000, or less where the sum would not fit into 32 bits."""
    scale = min(_LARGEST_WEIGHT / weights.max(), _LARGEST_SUM / weights.sum()) if weights.size else 1.0
    return np.maximum(np.rint(weights * scale), least).astype(np.int64)


def _wheel(name: str) -> Any:
    """Import a partitioner.

    Raises
    ------
    ImportError
        It is missing; the line to install it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"partitioning a graph by this method needs {name}, which is not installed: pip install {name}"
        ) from error


# ------------------------------------------------------------------------------------------------ METIS


def metis(cut: Cut) -> Ints:
    """Cut few and weak edges by METIS: recursive bisection below 8 parts, k-way from there on.

    Seeds 0 and 1 give the same where they do to the C library (glibc).

    References
    ----------
    Karypis and Kumar, doi:10.1137/S1064827595287997.
    """
    extra: dict[str, Any] = {}
    if cut.graph.weights is not None:
        extra["eweights"] = integers(cut.graph.weights.numpy(), least=1)
    return _metis(cut, recursive=cut.parts < 8, **extra)


def metis_volume(cut: Cut) -> Ints:
    """Lower the communication volume (halo rows) by METIS, k-way; weights of edges play no role."""
    return _metis(cut, recursive=False, objtype=_wheel("pymetis").ObjType.VOL)


def _metis(cut: Cut, recursive: bool, objtype: int | None = None, **extra: Any) -> Ints:
    pymetis = _wheel("pymetis")
    options = {"seed": cut.seed} if objtype is None else {"seed": cut.seed, "objtype": objtype}
    if not recursive:  # bisection keeps METIS's own bound, 0.1 % per cut
        options["ufactor"] = max(1, round(1000 * cut.imbalance))
    if cut.weights is not None:
        extra["vweights"] = integers(cut.weights, least=0)
    _, labels = pymetis.part_graph(
        cut.parts,
        pymetis.CSRAdjacency(cut.graph.indptr.numpy(), cut.graph.indices.numpy()),
        recursive=recursive,
        options=pymetis.Options(**options),
        **extra,
    )
    return np.asarray(labels, dtype=np.int64)


# ------------------------------------------------------------------------------------------------ KaHyPar, KaHIP


def kahypar(cut: Cut) -> Ints:
    """Cut few and weak edges by Mt-KaHyPar.

    The deterministic quality preset: the others differ from run to run, with one thread too. That preset ignores seeds,
    so every seed but 0 shuffles the nodes.

    References
    ----------
    Gottesbueren, Heuer, Maas, Sanders and Schlag, doi:10.1145/3626527.
    """
    row, col = cut.graph.edge_index.numpy()
    new = _shuffle(cut)
    upper = row < col
    ends = np.stack([new[row[upper]], new[col[upper]]], axis=1)
    weights = np.ones(len(ends)) if cut.graph.weights is None else cut.graph.weights.numpy()[upper]
    edges = [tuple(pair) for pair in ends.tolist()]
    return _mt_kahypar(cut, "CUT", "create_graph", new, edges, integers(weights, least=1).tolist())


def kahypar_km1(cut: Cut) -> Ints:
    """Lower the halo rows by Mt-KaHyPar: the connectivity of the hypergraph of neighbourhoods.

    The net of a node is the node and its neighbours; one that touches l parts costs l - 1 rows of halo. Weights of
    edges play no role.

    References
    ----------
    Demirci, Haldar and Ferhatosmanoglu, arXiv:2212.05009 (the model for graph networks).
    """
    nets = neighbourhoods(cut.graph)
    new = _shuffle(cut)
    pins = [net.tolist() for net in np.split(new[nets.indices], nets.indptr[1:-1])]
    return _mt_kahypar(cut, "KM1", "create_hypergraph", new, pins, [1] * cut.graph.nodes)


def neighbourhoods(graph: Graph) -> sp.csr_matrix:
    """Return A + I with ones as entries: row v holds v and its neighbours."""
    return (graph.scipy(weighted=False) + sp.identity(graph.nodes, format="csr")).tocsr()


def _shuffle(cut: Cut) -> Ints:
    nodes = cut.graph.nodes
    return np.random.default_rng(cut.seed).permutation(nodes) if cut.seed else np.arange(nodes)


def _mt_kahypar(cut: Cut, objective: str, create: str, new: Ints, edges: list[Any], weights: list[int]) -> Ints:
    """Call Mt-KaHyPar on edges or nets whose ends are renumbered: node v is number new[v] there."""
    import torch

    module = _wheel("mtkahypar")
    load, epsilon = _whole_loads(cut)
    start = module.initialize(torch.get_num_threads(), False)
    context = start.context_from_preset(module.PresetType.DETERMINISTIC_QUALITY)
    context.set_partitioning_parameters(cut.parts, epsilon, getattr(module.Objective, objective))
    context.logging = False
    module.set_seed(cut.seed)
    renumbered = np.empty_like(load)
    renumbered[new] = load
    graph = getattr(start, create)(context, cut.graph.nodes, len(edges), edges, renumbered.tolist(), weights)
    return np.asarray(graph.partition(context).get_partition(), dtype=np.int64)[new]


def kahip(cut: Cut) -> Ints:
    """Cut few and weak edges by KaHIP's kaffpa, preset eco; its social variant for graphs with hubs.

    References
    ----------
    Sanders and Schulz, doi:10.1007/978-3-642-38527-8_16.
    """
    module = _wheel("kahip")
    graph = cut.graph
    degree = graph.degree.numpy()
    load, epsilon = _whole_loads(cut)
    weights = np.ones(graph.edges) if graph.weights is None else graph.weights.numpy()
    preset = module.ECOSOCIAL if degree.max() > 10 * degree.mean() else module.ECO
    arrays = (load, graph.indptr.numpy(), integers(weights, least=1), graph.indices.numpy())
    narrow = (array.astype(np.int32) for array in arrays)
    _, labels = module.kaffpa(*narrow, cut.parts, epsilon, True, cut.seed, preset)
    return np.asarray(labels, dtype=np.int64)


def _whole_loads(cut: Cut) -> tuple[Ints, float]:
    """Return integer weights of nodes, and the imbalance over the rounded mean that leads to `heaviest`."""
    load = np.ones(cut.graph.nodes, dtype=np.int64) if cut.weights is None else integers(cut.weights, least=0)
    allowed = float(heaviest(load.astype(np.float64), cut.parts, cut.imbalance))
    return load, max(allowed / -(-int(load.sum()) // cut.parts) - 1, 0.0)


# ------------------------------------------------------------------------------------------------ PETSc


def petsc_types() -> list[str]:
    """Return the types of MatPartitioning in this build of PETSc."""
    library = _petsc()
    return [name for name in (*_PETSC_ORDER, "current", "square", "hierarch") if _has_type(library, name)]


def _petsc() -> Any:
    from mldd.ranks import load_petsc

    return load_petsc()


def _has_type(library: Any, name: str) -> bool:
    made = library.MatPartitioning().create(library.COMM_SELF)
    try:
        made.setType(name)
    except library.Error:
        return False
    finally:
        made.destroy()
    return True


def petsc(cut: Cut, kind: str = "") -> Ints:
    """Use PETSc's MatPartitioning: `kind`, or the first of parmetis, ptscotch, chaco, party, average in the build.

    It runs on every rank by itself. PETSc's Python interface passes weights of edges (as integers), not of nodes. The
    type ``average`` cuts the numbering into equal runs; ``current`` and ``square`` know one part per rank only.

    Raises
    ------
    ValueError
        The type is not in this build, or refuses the graph.
    """
    library, there = _petsc(), petsc_types()
    kind = kind or next(name for name in _PETSC_ORDER if name in there)
    if kind not in there:
        raise ValueError(f"`method` petsc-TYPE must name one of {' '.join(there)} (this PETSc build), got {kind}")
    matrix, prefix = _adjacency(library, cut.graph), "mldd_"
    options = library.Options(prefix)
    options["mat_partitioning_nparts"] = cut.parts
    made, found = library.MatPartitioning().create(library.COMM_SELF), library.IS()
    try:
        made.appendOptionsPrefix(prefix)
        made.setAdjacency(matrix)
        made.setType(kind)
        made.setFromOptions()
        made.apply(found.create(library.COMM_SELF))
        return np.array(found.getIndices(), dtype=np.int64)
    except library.Error as error:
        reason = str(error).splitlines()[-1].split("] ", 1)[-1]
        raise ValueError(f"PETSc's partitioner {kind} refuses the graph: {reason}; use another method") from error
    finally:
        options.delValue("mat_partitioning_nparts")
        for thing in (made, found, matrix):
            thing.destroy()


def _adjacency(library: Any, graph: Graph) -> Any:
    """Return the adjacency in PETSc's own format, with integer weights of edges if there are any."""
    index = library.IntType
    data = np.ones(graph.edges) if graph.weights is None else integers(graph.weights.numpy(), least=1).astype(float)
    pieces = (graph.indptr.numpy().astype(index), graph.indices.numpy().astype(index), data)
    matrix = library.Mat().createAIJ((graph.nodes, graph.nodes), csr=pieces, comm=library.COMM_SELF)
    matrix.convert("mpiadj")
    return matrix


# ------------------------------------------------------------------------------------------------ by bisection


def geometric(cut: Cut) -> Ints:
    """Bisect recursively across principal axes of the coordinates."""
    if cut.coordinates is None:
        raise ValueError("method geometric needs `coordinates` of shape (n, 2) in degrees or (n, d), got none")
    return bisection.geometric(cut.coordinates, cut.load, cut.parts)


def spectral(cut: Cut) -> Ints:
    """Bisect recursively by Fiedler vectors."""
    return bisection.spectral(cut.graph.scipy(), cut.load, cut.parts, cut.seed)


# ------------------------------------------------------------------------------------------------ for comparison


def contiguous(cut: Cut) -> Ints:
    """Cut the numbering of the nodes into runs of equal weight."""
    return _runs(cut.load, cut.parts)


def random(cut: Cut) -> Ints:
    """Deal the nodes out at random, equal weight to every part."""
    order = np.random.default_rng(cut.seed).permutation(cut.graph.nodes)
    label = np.empty(cut.graph.nodes, dtype=np.int64)
    label[order] = _runs(cut.load[order], cut.parts)
    return label


def _runs(load: Floats, parts: int) -> Ints:
    before = np.cumsum(load) - load
    return np.asarray(np.minimum(before * parts // load.sum(), parts - 1), dtype=np.int64)


METHODS: dict[str, Callable[[Cut], Ints]] = {
    "metis": metis,
    "metis-volume": metis_volume,
    "kahypar": kahypar,
    "kahypar-km1": kahypar_km1,
    "kahip": kahip,
    "petsc": petsc,
    "geometric": geometric,
    "spectral": spectral,
    "contiguous": contiguous,
    "random": random,
}
