"""Finds out whether this machine can emulate a cluster; knows nothing of how a bed is laid out."""

import functools
import os
import shutil
import subprocess

from tests.jobs.launcher import mpirun_command

TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
# Everything a bed asks of the kernel, once, in namespaces that end with the command.
PROBE = """
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /dev/shm &&
ip link add bridge0 type bridge && ip link add a0 type veth peer name b0 &&
tc qdisc add dev a0 root tbf rate 1gbit burst 32kb limit 1mb
"""


@functools.cache
def missing() -> str | None:
    """What keeps an emulated cluster from running here, in one line; None where it can run."""
    if os.geteuid() != 0:
        return "an emulated cluster needs root, to make network namespaces"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"an emulated cluster needs the command '{tool}' (package {package})"
    return _missing_hydra() or _refused_by_kernel()


def _missing_hydra() -> str | None:
    try:
        mpirun = mpirun_command(1)[0]
    except AssertionError as error:
        return str(error)
    done = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
    if "HYDRA" not in done.stdout:
        return f"an emulated cluster needs MPICH's mpirun (hydra); {mpirun} is another"
    return None


def _refused_by_kernel() -> str | None:
    unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*unshare, "sh", "-c", PROBE], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        return f"this machine refuses namespaces, bridges or tc tbf: {done.stderr.strip()}"
    return None
