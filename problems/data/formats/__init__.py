"""Readers of files: one file per format, each a function of a `File` that returns the arrays in it.

The table below names those of a suffix; a format of one's own is a function in a file (``reader=file.py:read``), in a
package, or an entry point of the group ``mldd.formats`` named by its suffix. No reader may run code that a file
holds. What makes graphs and series of the arrays stands in the room above.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_FORMATS = "mldd.problems.data.formats"
REGISTERED = {
    "npz": f"{_FORMATS}.npz:read",
    "pt": f"{_FORMATS}.pt:read",
    "pth": f"{_FORMATS}.pt:read",
    "nc": f"{_FORMATS}.netcdf:read",
    "nc4": f"{_FORMATS}.netcdf:read",
    "cdf": f"{_FORMATS}.netcdf:read",
    "zarr": f"{_FORMATS}.zarr:read",
    "grib": f"{_FORMATS}.grib:read",
    "grib2": f"{_FORMATS}.grib:read",
    "grb": f"{_FORMATS}.grib:read",
    "grb2": f"{_FORMATS}.grib:read",
}
