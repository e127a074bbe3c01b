"""What earlier launches left in the run folder, and what this one writes there of itself.

Knows jobs and launches; nothing of rows or of what is computed.
"""

import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_hpc.config import RunConfig
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.lock import LOCK_NAME
from janus_hpc.results.manifest import load_manifest
from janus_hpc.rows.index_file import INDEX_NAME

# A job that came back since a node was lost may find that node's lock still held.
LOCK_WAIT_S = 300.0


def is_restart(env: LaunchEnv) -> bool:
    """Whether Slurm has requeued this job."""
    return env.slurm.get("restart_count", "0") != "0"


def came_back(run_dir: Path, env: LaunchEnv) -> bool:
    """Whether this job was requeued after it had begun the run: the command is the same, --fresh was heeded before."""
    if not is_restart(env):
        return False
    manifest = load_manifest(run_dir)
    launches = [] if manifest is None else manifest.launches
    return any(its.info.get("job_id") == env.job_id for its in launches)


def discard(run_dir: Path) -> None:
    """Remove all that earlier launches left: launches are numbered anew, and must not take it for their own."""
    for path in sorted(run_dir.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (INDEX_NAME, LOCK_NAME):
            path.unlink()


def launch_info(
    config: RunConfig, env: LaunchEnv, hosts: Sequence[str], model_dir: Path
) -> dict[str, Any]:
    """What the manifest keeps of a start; a file made of the journals alone takes its provenance from it."""
    return {
        "started_at_unix_s": int(time.time()),
        "argv": sys.argv[1:],
        "num_ranks": len(hosts),
        "rank0_host": socket.gethostname(),
        "launcher": env.launcher,
        "job_id": env.job_id,
        "slurm": env.slurm,
        "model": str(model_dir.resolve()),
        "config": {name: getattr(config, name) for name in config.__struct_fields__},
        "hosts": list(hosts),
    }
