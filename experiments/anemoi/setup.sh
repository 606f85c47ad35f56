#!/bin/sh
# Make .venv-anemoi: Anemoi on a CPU, and mldd in editable mode. Its pins (zarr 2, pandas 2, numcodecs below 0.16) and
# ours exclude each other, so this is an environment of its own. torch comes first, and Anemoi's packages come without
# their dependencies: their pins would bring another torch, with CUDA. It heeds PYTHON (3.11 to 3.13).
set -eu
cd "$(dirname "$0")/../.."
venv=$(pwd -P)/.venv-anemoi
if [ -e "$venv/complete" ] && [ "$(cat "$venv/complete")" = "$(cksum <"experiments/anemoi/setup.sh")" ]; then exit 0; fi
echo "setup: Anemoi in .venv-anemoi, 2.5 GB, some minutes ..."
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install "torch==2.13.0"
pip install numpy scipy scikit-learn matplotlib networkx plotly typeguard "hydra-core>=1.3" omegaconf einops \
    torch-geometric "zarr<=2.18.7" "numcodecs<0.16" cfunits glom jsonschema lru-dict pint psutil "pydantic>=2.9" \
    "pydantic-settings>=2.14.1" "pyodc>=1.6" pyyaml rich "ruamel-yaml>=0.16" semantic-version tqdm aniso8601 \
    deprecation entrypoints multiurl peekle python-dateutil "pandas<3" "pyproj<3.8" healpy "earthkit-data<1" \
    "earthkit-geo<1" "earthkit-meteo<1" "earthkit-regrid<1" numba nvidia-ml-py pytorch-lightning torchinfo \
    mlflow-skinny netCDF4 h5netcdf h5py trimesh rtree gitpython nvsmi jinja2 requests datashader distinctipy cartopy \
    pymetis lazy_loader pooch mpi4py mpich pytest setuptools wheel
pip install --no-deps anemoi-utils==0.5.14 anemoi-transform==0.5.1 anemoi-datasets==0.5.47 anemoi-graphs==0.9.8 \
    anemoi-models==0.19.0 anemoi-training==0.17.1
pip install --no-deps --no-build-isolation --editable .
cksum <experiments/anemoi/setup.sh >"$venv/complete"
