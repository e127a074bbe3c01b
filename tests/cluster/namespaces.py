"""Makes the namespaces of a bed and ends them; knows nothing of links, rates or MPI.

All of a bed hangs from one process, the switch: the nodes are in process namespaces below its own,
so that the kernel ends and frees everything when it ends, and it ends when its standard input closes,
as it does when the owner is killed. Nothing gets a name outside, so beds cannot collide.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

TIMEOUT_S = 10
# Reports the process id as seen from outside, while /proc is still the outer one. The new /sys shows
# this node's network devices (UCX looks there) and keeps the outer control groups.
HOLD = """
set -e
read -r outer_pid rest </proc/self/stat
mount -t tmpfs tmpfs /dev/shm
mkdir /dev/shm/cgroup
mount --rbind /sys/fs/cgroup /dev/shm/cgroup
mount -t sysfs sysfs /sys
mount --move /dev/shm/cgroup /sys/fs/cgroup
rmdir /dev/shm/cgroup
mount -t proc proc /proc
for f in all default; do
    if [ -e /proc/sys/net/ipv6/conf/$f ]; then echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; fi
done
hostname "$1"
ip link set lo up
echo "$outer_pid"
exec >/dev/null 2>&1
"""
UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]


@dataclass
class Holders:
    """The processes that keep a bed's namespaces; `*_pid` are process ids as seen from outside."""

    switch: subprocess.Popen[str]
    switch_pid: int = 0
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)
    node_pids: list[int] = field(default_factory=list)

    def close(self) -> None:
        """End every process of the bed and wait until the kernel has; may be repeated."""
        for holder in (self.switch, *self.nodes):
            for stream in (holder.stdin, holder.stdout, holder.stderr):
                if stream is not None:
                    stream.close()
            try:
                holder.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()


def hold(num_nodes: int) -> Holders:
    """Start the switch and the nodes, named node0, node1, ...; RuntimeError where that fails."""
    holders = Holders(_start([*UNSHARE, "sh", "-c", HOLD + "exec cat", "sh", "switch"]))
    try:
        holders.switch_pid = _reported_pid(holders.switch)
        enter = ["nsenter", "--target", str(holders.switch_pid), "--pid", "--"]
        for i in range(num_nodes):
            program = ["sh", "-c", HOLD + "exec sleep infinity", "sh", f"node{i}"]
            holders.nodes.append(_start([*enter, *UNSHARE, *program]))
        holders.node_pids = [_reported_pid(node) for node in holders.nodes]
    except BaseException:
        holders.close()
        raise
    return holders


def namespace_of(pid: int | str) -> str:
    """The process namespace of a process, as a text to compare; empty where the process is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def _start(command: list[str]) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in a terminal must not end the bed before the job in it.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _reported_pid(holder: subprocess.Popen[str]) -> int:
    output: IO[str] | None = holder.stdout
    assert output is not None and holder.stderr is not None
    line = output.readline()
    if not line:
        raise RuntimeError(f"cannot make namespaces: {holder.stderr.read().strip()}")
    return int(line)
