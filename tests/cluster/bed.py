"""The emulated cluster that tests and the command use: starts jobs on its nodes and disturbs them."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster import namespaces, network
from tests.jobs.launcher import mpirun_command

ENTER_NODE = Path(__file__).with_name("enter_node")
END_TIMEOUT_S = 10


class Bed:
    """Nodes 0, 1, ... with `ranks[i]` MPI ranks on node i, world ranks in the order of the nodes."""

    def __init__(self, ranks: Sequence[int], holders: namespaces.Holders) -> None:
        self.ranks = tuple(ranks)
        self._holders = holders
        self._jobs: list[subprocess.Popen[Any]] = []

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start `command` under mpirun on all nodes; `env` adds to the environment.

        `options` go to subprocess.Popen. The job ends with the bed at the latest.
        """
        enter = ["nsenter", "--target", str(self._holders.switch_pid), "--net", "--"]
        job = subprocess.Popen(
            [*enter, *self._mpirun_command(), *map(str, command)],
            env=os.environ | self._environment() | dict(env or {}),
            **options,
        )
        self._jobs.append(job)
        return job

    def mpirun(
        self,
        command: Sequence[str | Path],
        *,
        timeout_s: int,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end, output captured.

        A job that hangs is ended by mpirun after `timeout_s` (exit code not 0), or, where mpirun
        hangs itself, raises subprocess.TimeoutExpired some seconds later.
        """
        job = self.popen(
            command,
            env={"MPIEXEC_TIMEOUT": str(timeout_s)} | dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = job.communicate(timeout=timeout_s + END_TIMEOUT_S)
        finally:
            end_job(job)
        return subprocess.CompletedProcess(job.args, job.returncode, out, err)

    def cut(self, node: int) -> None:
        """Pull the node's data cable; the management network stays."""
        network.set_data_link(self._holders.switch_pid, node, up=False)

    def mend(self, node: int) -> None:
        """Plug the node's data cable in again."""
        network.set_data_link(self._holders.switch_pid, node, up=True)

    def slow_down(self, node: int, rate: str) -> None:
        """Let bytes come to the node at another rate (as tc writes it: 50mbit)."""
        network.set_data_rate(self._holders.switch_pid, node, rate)

    def link_bytes(self, node: int) -> tuple[int, int]:
        """Bytes the node has sent and received over its data link, frame headers included."""
        return network.data_bytes(self._holders.switch_pid, node)

    def pids(self, node: int, pattern: str) -> list[int]:
        """Processes of the node whose command line matches, as process ids to send signals to.

        Ascending; leaves out the launcher's own processes and those that have ended.
        """
        here = namespaces.namespace_of(self._holders.node_pids[node])
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            if namespaces.namespace_of(entry.name) != here:
                continue
            command = _command_line(entry)
            if "hydra_pmi_proxy" not in command and command and re.search(pattern, command):
                found.append(int(entry.name))
        return sorted(found)

    def close(self) -> None:
        """End every job and remove every node; may be repeated."""
        for job in self._jobs:
            end_job(job, patience_s=0)
        self._holders.close()

    def _mpirun_command(self) -> list[str]:
        hosts = [f"{network.node_address(i)}:{n}" for i, n in enumerate(self.ranks)]
        return [
            *mpirun_command(sum(self.ranks)),
            *("-launcher", "ssh", "-launcher-exec", str(ENTER_NODE)),
            *("-iface", "mgmt", "-hosts", ",".join(hosts)),
        ]

    def _environment(self) -> dict[str, str]:
        return {
            "BED_NODE_PIDS": " ".join(map(str, self._holders.node_pids)),
            "UCX_NET_DEVICES": "data0",
        }


@contextlib.contextmanager
def emulated_cluster(ranks: Sequence[int], rate: str) -> Iterator[Bed]:
    """A bed with `ranks[i]` MPI ranks on node i and data links of `rate` (as tc writes it: 1gbit)."""
    if not ranks or min(ranks) < 1 or len(ranks) > 200:
        raise ValueError(f"an emulated cluster has 1 to 200 nodes with a rank or more: {ranks}")
    holders = namespaces.hold(len(ranks))
    bed = Bed(ranks, holders)
    try:
        network.lay_links(holders.switch_pid, holders.node_pids, rate)
        yield bed
    finally:
        bed.close()


def end_job(job: subprocess.Popen[Any], patience_s: float = END_TIMEOUT_S) -> None:
    """End a job that still runs: by SIGTERM, and by SIGKILL after `patience_s`."""
    if job.poll() is not None:
        return
    job.terminate()
    try:
        job.wait(patience_s)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()


def _command_line(entry: Path) -> str:
    try:
        return (
            (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
    except OSError:
        return ""
