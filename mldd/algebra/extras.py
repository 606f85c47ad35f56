"""Packages that not every installation has: which extra of mldd brings them."""

from __future__ import annotations

# Module -> the extra of setup.cfg that brings it; what is required always has none.
EXTRAS = {
    "mpi4py": "mpi",
    "petsc4py": "petsc",
    "greenlet": "petsc",
    "torch_geometric": "graphs",
    "mtkahypar": "partition",
    "kahip": "partition",
    "xarray": "fields",
    "cftime": "fields",
    "h5netcdf": "fields",
    "zarr": "fields",
    "cfgrib": "fields",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def way_to_install(module: str) -> str:
    """Return the command that installs a module, by the extra of mldd where one brings it.

    Parameters
    ----------
    module : str
        As it is imported, with or without submodules.

    Examples
    --------
    >>> way_to_install("petsc4py.PETSc")
    'pip install "mldd[petsc]"'
    >>> way_to_install("lightgbm")
    'pip install lightgbm'
    """
    top = module.partition(".")[0]
    return f'pip install "mldd[{EXTRAS[top]}]"' if top in EXTRAS else f"pip install {top}"
