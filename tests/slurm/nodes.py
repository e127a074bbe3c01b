"""Nodes of the test cluster that die without a word and come back. Knows daemons and processes, not what jobs do."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.slurm.cluster import Cluster, find_program, wait_until

NODE_LIMIT_S = 120.0


def set_state(cluster: Cluster, node: str, state: str) -> None:
    cluster.command("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=fault")


def kill_node(cluster: Cluster, node: str) -> None:
    """kill -9 of all that runs on a node, its slurmd first: Slurm is not told."""
    for pid in _processes_of(cluster, node):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def start_node(cluster: Cluster, node: str) -> None:
    """Start slurmd of a killed node as the cluster itself does, which also ends it."""
    program = find_program("slurmd")
    assert program is not None
    with (cluster.folder / "slurmd.log").open("a") as log:
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", program, "-D", "-N", node],
            cwd=cluster.folder,
            env=cluster.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def bring_back(cluster: Cluster, node: str) -> None:
    """A node whose daemon has registered anew is no longer down, and cannot be resumed."""

    def is_back() -> bool:
        state = cluster.command("sinfo", "--noheader", "--nodes", node, "--format=%t").strip()
        if state.startswith(("down", "drain")):
            with suppress(AssertionError):
                set_state(cluster, node, "RESUME")
        return cluster.nodes_are_idle()

    wait_until(is_back, "all nodes are idle", NODE_LIMIT_S)


def _processes_of(cluster: Cluster, node: str) -> list[int]:
    """slurmd of the node, then the step daemons, then the ranks and scripts there: none tells of another's end."""
    daemons, steps, rest = set(), set(), set()
    for pid in cluster.processes():
        words = _read(pid, "cmdline").split(b"\0")
        if words[0].endswith(b"slurmd") and node.encode() in words:
            daemons.add(pid)
        elif f"SLURMD_NODENAME={node}".encode() in _read(pid, "environ").split(b"\0"):
            rest.add(pid)
            steps |= _step_daemons_above(pid)
    return [*sorted(daemons), *sorted(steps), *sorted(rest - steps)]


def _step_daemons_above(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        if b"slurmstepd" in _read(pid, "cmdline"):
            found.add(pid)
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # ended meanwhile
        return b""
