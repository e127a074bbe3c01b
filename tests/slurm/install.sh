#!/usr/bin/env bash
# Installs Slurm for the tests on Debian and its kin, where it is missing. Usage: bash tests/slurm/install.sh
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
missing=0
for program in slurmctld slurmd munged sbatch srun; do
    command -v "$program" >/dev/null || missing=1
done
if [ "$missing" = 0 ]; then
    echo "Slurm is installed: $(slurmd -V)"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: install Slurm and munge by hand" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true || { echo "installing Slurm needs root, or sudo without a password" >&2; exit 1; }
    as_root=(sudo -n)
fi
echo "installing slurm-wlm and munge with apt-get"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
echo "installed: $(slurmd -V)"
