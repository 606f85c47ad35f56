"""Read pickles of plain arrays without trust: a list of allowed names, everything else is refused before import."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from typing import Any

import numpy as np
import scipy.sparse as sp

from mldd.problems.data import DataError, one_line
from mldd.problems.data.formats.checks import csr


class _Unpickler(pickle.Unpickler):
    """Read pickles of NumPy arrays, SciPy CSR matrices and dictionaries of lists, and refuse every other name.

    A CSR matrix arrives as an empty stand-in that collects the pieces, so that no SciPy code sees them unchecked.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        reconstruct = np.empty(0).__reduce__()[0]
        matrix = type("CsrPieces", (), {})
        self._allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("scipy.sparse.csr", "csr_matrix"): matrix,
            ("scipy.sparse._csr", "csr_matrix"): matrix,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("builtins", "list"): list,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed object; refuse the rest before it is imported."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no data file needs")
        return self._allowed[module, name]


def unpickle(content: bytes, where: str) -> Any:
    """Return the object of a pickle of plain arrays; nothing that the pickle names is executed.

    Parameters
    ----------
    content : bytes
        The pickle.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        If the pickle is damaged or asks for anything but arrays, CSR matrices, lists and dictionaries.
    """
    try:
        return _Unpickler(content).load()
    except Exception as error:  # a hostile or damaged pickle can raise anything
        reason = one_line(error)
    raise DataError(f"{where}: expected a pickle of plain arrays, got {reason}; get the file anew from its source")


def matrix_of(stand_in: Any, where: str) -> sp.csr_matrix:
    """Return the CSR matrix whose pieces the unpickler collected.

    Parameters
    ----------
    stand_in : object
        What `unpickle` put in the place of the matrix.
    where : str
        Names the source in errors.
    """
    state = dict(vars(stand_in))
    shape = state.get("_shape", state.get("shape"))
    return csr(state["data"], state["indices"], state["indptr"], shape, where)
