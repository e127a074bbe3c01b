"""The configuration files of a Slurm whose nodes all live on this host. Writes files, starts nothing."""

import getpass
import os
import random
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path

NUM_NODES = 4
CPUS_PER_NODE = 8
GPU_DEVICES = ("/dev/null", "/dev/zero")
# From this version on slurmd wants a cgroup tree to itself unless told otherwise.
CGROUPS_ARE_OPTIONAL = (24, 5)

SLURM_CONF = """\
ClusterName=janus
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its credential has expired; 120 s unless told otherwise. Steps have the same ids as
# before, and what still ends the old ones, for KillWait and some seconds, would end the new ones.
AuthInfo=socket={folder}/munge.socket,cred_expire=25
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
FirstJobId={first_job_id}
# Nothing here may need cgroups, or hold the jobs to their share of the cores.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# Heterogeneous jobs are started by the backfill scheduler alone.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
MpiDefault=none
# Devices of every machine stand for GPUs: Slurm hands out their numbers, and nobody opens them.
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
NodeName=n[1-{num_nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}]
PartitionName=all Nodes=n[1-{num_nodes}] Default=YES MaxTime=INFINITE State=UP
"""


def write_configuration(folder: Path, version: tuple[int, int]) -> None:
    """slurm.conf, gres.conf, cgroup.conf where it is needed, munge's key, and the folders they name."""
    controller_port, *node_ports = free_ports(1 + NUM_NODES)
    text = SLURM_CONF.format(
        folder=folder,
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        controller_port=controller_port,
        # MPICH names its shared memory by job id, and a killed job leaves some behind.
        first_job_id=random.randrange(1, 60_000_000),
        node_ports=",".join(map(str, node_ports)),
        num_nodes=NUM_NODES,
        cpus=CPUS_PER_NODE,
        gpus=len(GPU_DEVICES),
    )
    (folder / "slurm.conf").write_text(text)
    lines = [f"NodeName=n[1-{NUM_NODES}] Name=gpu File={device}\n" for device in GPU_DEVICES]
    (folder / "gres.conf").write_text("".join(lines))
    if version >= CGROUPS_ARE_OPTIONAL:
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    for name in ("state", *(f"spool-n{number}" for number in range(1, NUM_NODES + 1))):
        (folder / name).mkdir()
    key = os.open(folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(key, "wb") as file:
        file.write(secrets.token_bytes(128))


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; ascending, as Slurm wants them in a list."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return sorted(one.getsockname()[1] for one in sockets)
