"""Graph convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from mldd.problems.nets.layers.layer import Floats, Layer


@dataclass(frozen=True)
class GCN(Layer):
    """Graph convolution ``A H W + b`` with ``A = D^-1/2 (I + adjacency) D^-1/2``.

    References
    ----------
    Kipf and Welling, arXiv:1609.02907, equation 2.
    """

    self_loops: ClassVar[bool] = True
    weightable: ClassVar[bool] = True
    swept: ClassVar[bool] = True

    def values(self, pattern: Any, rows: Floats, columns: Floats) -> Any:
        """Return ``a_ij / sqrt((1 + d_i) (1 + d_j))``."""
        left, right = (sp.diags(np.sqrt(1.0 / (degree + 1.0))) for degree in (rows, columns))
        return sp.csr_matrix(left @ pattern @ right)
