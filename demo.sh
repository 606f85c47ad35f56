#!/bin/sh
# The demonstration, by `make demo`: graph networks on two ranks, with torch and MPI alone, while PETSc is being built
# where it is missing; then a coarse level that PETSc solves.
set -eu
cd "$(dirname "$0")"
mldd=.venv/bin/mldd
out=runs/demo
ranks=2
mkdir -p "$out"
sh setup.sh --first
sh setup.sh >"$out/setup.log" 2>&1 &
setup=$!

# Ranks that share a core must not start threads of their own.
if [ "$ranks" -ge "$(getconf _NPROCESSORS_ONLN)" ]; then export OMP_NUM_THREADS=1; fi

launch=".venv/bin/mpiexec -n $ranks"
if ! .venv/bin/python -c 'import mpi4py.MPI' 2>/dev/null; then
    echo "demo: MPI is missing, so this runs on one rank"
    launch=
fi

run() { echo "+ $*"; "$@"; }

# A graph network learns the solution operator of an equation, by equally many gradient steps: parts with an overlap that
# are averaged every 20 steps, and synchronous steps with an exact halo. The summaries say what each of them sent.
operator=allen-cahn-operator
run $launch "$mldd" train $operator:subdomains=parts --parts 4 --overlap 4 --steps 20 --overwrite --out "$out/local" \
    --solver "local-adam:local=adam(lr=0.04),local_steps=20,schedule=cosine,warmup=1"
run $launch "$mldd" train $operator:sharing=nodes --steps 400 --overwrite --out "$out/synchronous" \
    --solver "adam:lr=0.04,schedule=cosine,warmup=20"

graph=cora
status=0
"$mldd" train cora --solver adam --steps 0 --quiet 2>"$out/probe.log" || status=$?
if [ $status -eq 2 ]; then
    graph=digits-graph
    echo "demo: Cora is neither at hand nor downloadable ($(tail -n 1 "$out/probe.log"))"
    echo "demo: taking digits-graph, the nearest-neighbour graph of scikit-learn's digits, instead"
elif [ $status -ne 0 ]; then
    cat "$out/probe.log" >&2
    exit $status
fi

# On a full batch: all solvers run until the loss without dropout is down to the same target: the table compares what that cost.
run $launch "$mldd" train $graph --solver dd-adagrad --parts 4 --levels 2 --steps 60 --overwrite --out "$out/train"
run $launch "$mldd" compare $graph --solvers dd-adagrad,adam --parts 4 --levels 2 --seeds 0,1,2 \
    --target 0.46 --steps 1000 --overwrite --out "$out/compare"

if kill -0 $setup 2>/dev/null; then echo "demo: waiting for PETSc, see $out/setup.log"; fi
wait $setup || true
if .venv/bin/python -c 'import petsc4py.PETSc' 2>/dev/null; then
    run $launch "$mldd" train obstacle:n=63 --solver "schwarz:coarse.solver=tao(bqnktr)" --parts 16 --overlap 2 \
        --levels 2 --steps 30 --atol 1e-6 --overwrite --out "$out/petsc"
else
    tail -n 1 "$out/setup.log"
fi
