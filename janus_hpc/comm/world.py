"""The world: COMM_WORLD, the node of every rank, and agreement between ranks.

Importing this module starts MPI. It must not know what a rank does with its role.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

from janus_hpc.comm.objects import (
    allgather_objects,
    barrier,
    bcast_object,
    gather_objects,
    mpi_library_version,
)
from janus_hpc.comm.pulse import Pulse
from janus_hpc.comm.waits import WaitPolicy, make_policy, shorten_sleeps
from janus_hpc.errors import JanusError
from janus_hpc.topology import Role, Topology


@dataclass(kw_only=True)
class World:
    """COMM_WORLD and what one allgather at the start told about it.

    `node_ids`, `hosts` and `local_ranks` have one entry a world rank; nodes count from 0 in the
    order of their lowest world rank. `num_cores` counts the CPUs that this node's ranks together
    may run on. `label` names this rank in messages; `pulse` is what it works on.
    """

    comm: MPI.Intracomm
    node_comm: MPI.Comm
    hostname: str
    node_ids: tuple[int, ...]
    hosts: tuple[str, ...]
    local_ranks: tuple[int, ...]
    num_cores: int
    policy: WaitPolicy
    label: str
    pulse: Pulse
    agreed_error: BaseException | None = field(default=None, init=False)

    @staticmethod
    def start() -> "World":
        """Take COMM_WORLD and learn which ranks share memory. Collective over the world."""
        comm = MPI.COMM_WORLD
        shorten_sleeps()
        pulse = Pulse()
        policy = make_policy(ranks_per_core=2, pulse=pulse)
        # All ranks are inside MPI before the first blocking call, which then spins but briefly.
        barrier(comm, policy)
        node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
        leader = bcast_object(node_comm, comm.rank, policy)
        hostname = MPI.Get_processor_name()
        facts = (leader, hostname, node_comm.rank, os.sched_getaffinity(0))
        leaders, hosts, local_ranks, cpu_sets = zip(
            *allgather_objects(comm, facts, policy), strict=True
        )
        nodes = sorted(set(leaders))
        on_node = [cpus for cpus, its in zip(cpu_sets, leaders, strict=True) if its == leader]
        num_cores = len(set().union(*on_node))
        return World(
            comm=comm,
            node_comm=node_comm,
            hostname=hostname,
            node_ids=tuple(nodes.index(its) for its in leaders),
            hosts=hosts,
            local_ranks=local_ranks,
            num_cores=num_cores,
            policy=make_policy(ranks_per_core=node_comm.size / num_cores, pulse=pulse),
            label=f"rank {comm.rank}@{hostname}",
            pulse=pulse,
        )

    @property
    def world_rank(self) -> int:
        """This rank's place in COMM_WORLD."""
        return self.comm.rank

    @property
    def world_size(self) -> int:
        """Ranks in COMM_WORLD."""
        return self.comm.size

    @property
    def node_id(self) -> int:
        """This rank's node."""
        return self.node_ids[self.comm.rank]

    @property
    def local_rank(self) -> int:
        """This rank's place among the ranks of its node."""
        return self.node_comm.rank

    @property
    def num_local(self) -> int:
        """Ranks on this node."""
        return self.node_comm.size

    @property
    def ranks_per_core(self) -> float:
        """Ranks of this node over its cores; above 1 they take turns."""
        return self.num_local / self.num_cores

    @property
    def library_version(self) -> str:
        """The MPI library's name and version, one line."""
        return mpi_library_version()

    def make_policy(self, timeout_s: float) -> WaitPolicy:
        """How this rank waits for at most `timeout_s`."""
        return make_policy(timeout_s, ranks_per_core=self.ranks_per_core, pulse=self.pulse)

    def topology(self, roles: Sequence[Role]) -> Topology:
        """The topology with these roles, one a world rank; from now on messages name the role."""
        topology = Topology(
            roles=tuple(roles),
            node_ids=self.node_ids,
            hosts=self.hosts,
            local_ranks=self.local_ranks,
        )
        self.label = topology.label(self.world_rank)
        return topology

    def bcast(self, value: object, root: int = 0) -> Any:
        """The root's value, on every rank. Collective over the world."""
        return bcast_object(self.comm, value, self.policy, root)

    def allgather(self, value: object) -> list[Any]:
        """Every rank's value, in rank order. Collective over the world."""
        return allgather_objects(self.comm, value, self.policy)

    def gather(self, value: object, root: int = 0) -> list[Any] | None:
        """Every rank's value on the root, None elsewhere. Collective over the world."""
        return gather_objects(self.comm, value, self.policy, root)

    def barrier(
        self, meanwhile: Callable[[], None] | None = None, timeout_s: float | None = None
    ) -> None:
        """Wait for every rank, calling `meanwhile` between polls; CommTimeout after `timeout_s`, if that is given.

        Collective over the world.
        """
        policy = self.policy if timeout_s is None else self.make_policy(timeout_s)
        barrier(self.comm, policy, meanwhile)

    def split(self, color: int | None) -> MPI.Comm | None:
        """The ranks of the same colour, in world order; None for colour None. Collective."""
        self.barrier()
        comm = self.comm.Split(MPI.UNDEFINED if color is None else color, self.world_rank)
        return None if comm == MPI.COMM_NULL else comm

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank the error of the lowest rank that has one. Collective over the world.

        An error of this package keeps its class and message; any other becomes a JanusError. The
        rank is named unless every rank has the same error.
        """
        reports = self.allgather(None if error is None else _describe(error))
        failed = [world_rank for world_rank, report in enumerate(reports) if report is not None]
        if not failed:
            return
        kind, message = reports[failed[0]]
        if len({str(report) for report in reports}) > 1:
            message += f" (world rank {failed[0]} on {self.hosts[failed[0]]}"
            message += f"; {len(failed)} of {len(reports)} ranks failed)"
        self.agreed_error = kind(message)
        raise self.agreed_error from error

    @property
    def abortable_by_threads(self) -> bool:
        """Whether threads beside the main one may call MPI."""
        return MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def abort(self, exit_code: int) -> None:
        """End every rank at once; mpirun then ends with this exit code. Does not return."""
        self.comm.Abort(exit_code)
        # MPICH's returns while its launcher is still on the way to end this process.
        os._exit(exit_code)


def _describe(error: Exception) -> tuple[type[JanusError], str]:
    """The error as something every rank can rebuild: a class of this package and a message."""
    if isinstance(error, JanusError):
        return type(error), str(error)
    return JanusError, f"{type(error).__name__}: {error}"
