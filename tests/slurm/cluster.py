"""A real Slurm of several nodes on this one host, in a folder of its own, as long as a test session.

Knows how Slurm is set up, used and ended; nothing of the jobs it runs. Leaves no process and no file behind.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.jobs.launcher import wait_until
from tests.slurm.configuration import NUM_NODES, write_configuration

START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0
POLL_S = 0.1
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
DAEMONS = ("munged", "slurmctld", "slurmd")


def missing_program() -> str | None:
    """The first program a cluster needs that this machine lacks."""
    needed = (*DAEMONS, "sbatch", "srun", "setpriv")
    return next((name for name in needed if find_program(name) is None), None)


def find_program(name: str) -> str | None:
    """Daemons lie in sbin, which a user's PATH may lack."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """A running Slurm; `environ` is what its commands and jobs need in their environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith("SLURM_")
        } | {"SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, *words: str | Path, cwd: Path | None = None, limit_s: float = 30) -> str:
        """Run one of Slurm's commands and return its output."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, cwd: Path, *words: str | Path) -> str:
        """sbatch; returns the job's id."""
        return self.command("sbatch", "--parsable", *words, cwd=cwd).strip()

    def wait_for(self, job: str, limit_s: float) -> tuple[str, str]:
        """Wait for the job's end: its state and its `exit code:signal`."""
        wait_until(lambda: self._state(job)[0] not in UNFINISHED, f"job {job} ends", limit_s)
        return self._state(job)

    def _state(self, job: str) -> tuple[str, str]:
        fields = self.command("scontrol", "show", "job", job, "--oneliner").split()
        values = dict(field.split("=", 1) for field in fields if "=" in field)
        return values["JobState"], values["ExitCode"]

    def nodes_are_idle(self) -> bool:
        """Whether the controller answers and every node is ready for jobs."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%t"],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=STOP_LIMIT_S,
            check=False,
        )
        return done.stdout.split() == ["idle"] * NUM_NODES

    def processes(self) -> list[int]:
        """Process ids of whatever runs under this cluster's configuration, jobs included."""
        mark = f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()
        return [pid for pid in _process_ids() if mark in _environ_of(pid)]

    def logs(self) -> str:
        """The end of every daemon's log, for a message."""
        texts = [
            f"== {path.name}\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log")
        ]
        return "\n".join(texts)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a Slurm of idle nodes; on leaving, cancel its jobs and end all its processes."""
    with ExitStack() as stack:
        # Not pytest's folder: the path of munge's socket has to be short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="janus-slurm-")))
        cluster = Cluster(folder)
        write_configuration(folder, _slurm_version())
        stack.callback(_end_all, cluster)
        munged = ["--foreground", "--force", f"--socket={folder}/munge.socket"]
        munged += [f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid"]
        munged += [f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log"]
        stack.enter_context(_daemon(cluster, "munged", munged))
        socket = folder / "munge.socket"
        wait_until(socket.exists, "munged listens", START_LIMIT_S)
        stack.enter_context(_daemon(cluster, "slurmctld", ("-D",)))
        for number in range(1, NUM_NODES + 1):
            stack.enter_context(_daemon(cluster, "slurmd", ("-D", "-N", f"n{number}")))
        try:
            wait_until(cluster.nodes_are_idle, "all nodes are idle", START_LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{cluster.logs()}") from error
        stack.callback(_cancel_jobs, cluster)
        yield cluster


@contextmanager
def _daemon(cluster: Cluster, name: str, arguments: Sequence[str]) -> Iterator[None]:
    """A daemon in the foreground; the kernel ends it as well should this process be killed."""
    program = find_program(name)
    assert program is not None, f"{name} is not installed"
    with (cluster.folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", program, *arguments],
            cwd=cluster.folder,
            env=cluster.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cancel_jobs(cluster: Cluster) -> None:
    """Kill the jobs that still run, and give Slurm some time to reap them."""
    command = ["scancel", "--signal=KILL", "--full", "--user", str(os.getuid())]
    subprocess.run(command, env=cluster.environ, timeout=30, check=False)
    deadline_s = time.monotonic() + STOP_LIMIT_S
    while not cluster.nodes_are_idle() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _end_all(cluster: Cluster) -> None:
    """Kill what the daemons left: job steps outlive their slurmd."""
    for pid in cluster.processes():
        if pid != os.getpid():
            _kill(pid)
    wait_until(lambda: not cluster.processes(), "all processes of Slurm have ended", STOP_LIMIT_S)


def _slurm_version() -> tuple[int, int]:
    slurmd = find_program("slurmd")
    assert slurmd is not None
    words = subprocess.run([slurmd, "-V"], capture_output=True, text=True, check=True).stdout
    major, minor = words.split()[-1].split(".")[:2]
    return int(major), int(minor)


def _process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
