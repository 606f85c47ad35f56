"""METIS, for few edges or for little communication."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut, integers
from mldd.graph.partitioners.wheel import wheel

Ints = NDArray[np.int64]


def metis(cut: Cut) -> Ints:
    """Cut few and weak edges by METIS: recursive bisection below 8 parts, k-way from there on.

    Seeds 0 and 1 give the same where they do to the C library (glibc).

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Karypis and Kumar, doi:10.1137/S1064827595287997.
    """
    extra: dict[str, Any] = {}
    if cut.graph.weights is not None:
        extra["eweights"] = integers(cut.graph.weights.numpy(), least=1)
    return _metis(cut, recursive=cut.parts < 8, **extra)


def metis_volume(cut: Cut) -> Ints:
    """Lower the communication volume (halo rows) by METIS, k-way; weights of edges play no role.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)
    """
    return _metis(cut, recursive=False, objtype=wheel("pymetis").ObjType.VOL)


def _metis(cut: Cut, recursive: bool, objtype: int | None = None, **extra: Any) -> Ints:
    pymetis = wheel("pymetis")
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
