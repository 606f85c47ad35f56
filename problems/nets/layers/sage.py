"""GraphSAGE with the mean of the neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from mldd.problems.nets.layers.layer import Floats, Layer


@dataclass(frozen=True)
class SAGE(Layer):
    """GraphSAGE ``H W_self + A H W_neighbours + b`` with ``A = D^-1 adjacency``; zero rows where there is no neighbour.

    References
    ----------
    Hamilton, Ying and Leskovec, arXiv:1706.02216, algorithm 1 with the mean aggregator.
    """

    terms: ClassVar[tuple[bool, ...]] = (False, True)
    weightable: ClassVar[bool] = True
    swept: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("self", "neighbours")
    passing: ClassVar[str] = "self"

    def values(self, pattern: Any, rows: Floats, columns: Floats) -> Any:
        """Return ``a_ij / d_i``."""
        inverse = np.divide(1.0, rows, out=np.zeros_like(rows), where=rows > 0)
        return sp.csr_matrix(sp.diags(inverse) @ pattern)
