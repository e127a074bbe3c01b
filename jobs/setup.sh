# Sourced by jobs/demo.sh and tests/run.sh: makes sure there is a Python environment with the package in it.
# Usage: source jobs/setup.sh EXTRAS     (e.g. mpich, or mpich,test)
# Uses the active virtual environment, else makes .venv in the repository; JANUS_PYTHON picks the interpreter.
# Leaves `python`, `mpirun` and `janus-hpc` on PATH.

_extras="$1"
_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_find_python() {
    local candidate
    for candidate in "${JANUS_PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "janus-hpc: no Python 3.11 or newer with venv found (set JANUS_PYTHON)" >&2
    return 1
}

if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x "$_root/.venv/bin/python" ]; then
        _python="$(_find_python)" || exit 1
        echo "making $_root/.venv with $_python" >&2
        "$_python" -m venv "$_root/.venv" || exit 1
    fi
    VIRTUAL_ENV="$_root/.venv"
fi
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"

# A stamp of what was installed keeps a second start fast.
_stamp="$VIRTUAL_ENV/.janus-hpc-$_extras"
_wanted="$_root $(cat "$_root/setup.cfg" "$_root/pyproject.toml" | cksum)"
if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
    # torch first: where a CPU build of the newest supported release is at hand it is taken as it is.
    python -c 'import torch' 2>/dev/null \
        || python -m pip install -q "torch==2.13.0" || python -m pip install -q "torch>=2.11,<2.14" \
        || exit 1
    python -m pip install -q -e "$_root[$_extras]" || exit 1
    echo "$_wanted" >"$_stamp"
fi
