#!/usr/bin/env bash
# The whole test suite from a bare machine: set-up, lint, types, unit, kernels, MPI at 1, 2, 3 and 5 ranks,
# an emulated cluster, whole jobs under mpirun, short forms of the campaigns, Slurm, and the commands of the README.
# Usage: bash tests/run.sh [STAGE...]      stages: lint types unit kernels mpi cluster jobs faults fuzz slurm readme
# With CI=true or JANUS_TEST_INSTALL=1 it installs the Debian packages a stage needs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
source jobs/setup.sh mpich,test
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(lint types unit kernels mpi cluster jobs faults fuzz slurm readme)
export MPIEXEC_TIMEOUT=300 PYTHONFAULTHANDLER=1

lint() {
    ruff check --config tests/ruff.toml janus_hpc kernels jobs tests
    ruff format --config tests/ruff.toml --check janus_hpc kernels jobs tests
}
types() {
    # As installed, with kernels/ inside the package.
    rm -rf build/types && mkdir -p build/types
    cp -r janus_hpc build/types/ && cp -r kernels build/types/janus_hpc/kernels
    (cd build/types && mypy --config-file ../../setup.cfg -p janus_hpc)
}
unit() { python -m pytest -q -x tests/unit; }
kernels() { python -m pytest -q -x tests/kernels; }
mpi() {
    local n
    for n in 1 2 3 5; do
        echo "mpirun -n $n"
        mpirun -n "$n" python -m mpi4py -m pytest -q -x -p no:cacheprovider tests/mpi
    done
}
cluster() {
    if [ "${CI:-}" = true ] || [ "${JANUS_TEST_INSTALL:-}" = 1 ]; then
        bash tests/cluster/install.sh
    fi
    python -m pytest -q -x -rP tests/cluster
}
jobs() { python -m pytest -q -x tests/jobs; }
faults() { python -m pytest -q -x tests/faults; }
fuzz() { python -m pytest -q -x tests/fuzz; }
slurm() {
    if [ "${CI:-}" = true ] || [ "${JANUS_TEST_INSTALL:-}" = 1 ]; then
        bash tests/slurm/install.sh
    fi
    python -m pytest -q -x tests/slurm
}
readme() { python -m pytest -q -x tests/readme; }

for stage in "${stages[@]}"; do
    echo "== $stage"
    started=$SECONDS
    "$stage"
    echo "== $stage passed in $((SECONDS - started)) s"
done
