"""PETSc's MatPartitioning, whatever the build has of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut, Graph, integers
from mldd.ranks import load_petsc

Ints = NDArray[np.int64]

_ORDER = ("parmetis", "ptscotch", "chaco", "party", "average")


def petsc_types() -> list[str]:
    """Return the types of MatPartitioning in this build of PETSc."""
    library = load_petsc()
    return [name for name in (*_ORDER, "current", "square", "hierarch") if _has_type(library, name)]


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

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.
    kind : str
        A type of MatPartitioning.

    Returns
    -------
    array of int64, shape (n,)

    Raises
    ------
    ValueError
        The type is not in this build, or refuses the graph.
    """
    library, there = load_petsc(), petsc_types()
    kind = kind or next(name for name in _ORDER if name in there)
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
