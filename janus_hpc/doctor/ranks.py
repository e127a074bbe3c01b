"""Check `ranks`: nodes and local ranks, as MPI sees them and as the launcher does."""

from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context, Places
from janus_hpc.doctor.finding import Finding, fine, some, warning


@dataclass(frozen=True, kw_only=True)
class RankFacts:
    """The launcher's word about this rank; None where it says nothing."""

    local_rank: int | None
    num_local: int | None


def gather(context: Context) -> RankFacts:
    """What the environment says."""
    return RankFacts(local_rank=context.env.local_rank, num_local=context.env.num_local)


def judge(facts: Sequence[RankFacts], context: Context) -> list[Finding]:
    """Pure."""
    places = context.places
    if context.is_alone:
        return [fine("not compared: each process sees only itself (see mpi)")]
    findings = _split_hosts(places) or _local_ranks(facts, places) or _num_local(facts, places)
    findings += _mixed_nodes(places)
    findings += _uneven(places)
    return findings or [fine(_summary(places))]


def _summary(places: Places) -> str:
    parts = [
        f"{len(ranks)} on {places.host_of(node)}" for node, ranks in enumerate(places.ranks_of)
    ]
    nodes = "1 node" if places.num_nodes == 1 else f"{places.num_nodes} nodes"
    return f"{nodes}, ranks: {some(parts, 4)}"


def _split_hosts(places: Places) -> list[Finding]:
    """One host, several "nodes": containers that do not share memory."""
    hosts = [places.host_of(node) for node in range(places.num_nodes)]
    split = sorted({host for host in hosts if hosts.count(host) > 1})
    if not split:
        return []
    return [
        warning(
            f"ranks of one host do not share memory: {some(split)} count as several nodes",
            why="what ranks of a host could share (weights, messages) is held and sent several times",
            fix="let the containers of a host share /dev/shm and the IPC namespace (docker: --ipc=host; "
            "Apptainer shares both unless told otherwise); MPICH: unset MPIR_CVAR_NOLOCAL",
            ranks=[r for r, host in enumerate(places.hosts) if host in split],
        )
    ]


def _mixed_nodes(places: Places) -> list[Finding]:
    mixed = [ranks for ranks in places.ranks_of if len({places.hosts[r] for r in ranks}) > 1]
    return [
        warning(
            f"ranks that share memory give different host names: "
            f"{some(sorted({places.hosts[r] for r in ranks}))}",
            why="messages and results name hosts that cannot be told apart",
            fix="give the containers of one host the host's name (docker: --uts=host)",
            ranks=ranks,
        )
        for ranks in mixed
    ]


def _local_ranks(facts: Sequence[RankFacts], places: Places) -> list[Finding]:
    wrong = [
        r
        for r, its in enumerate(facts)
        if its.local_rank is not None and its.local_rank != places.local_ranks[r]
    ]
    if not wrong:
        return []
    r = wrong[0]
    return [
        warning(
            f"the launcher gives world rank {r} local rank {facts[r].local_rank}, the ranks that "
            f"share its memory make it {places.local_ranks[r]}",
            why="a rank takes its GPU by the second, cores were bound by the first: ranks end up far "
            "from their GPU's memory",
            fix="start all ranks of a host in one step, in one kind of container, without "
            "splitting COMM_TYPE_SHARED (MPIR_CVAR_NOLOCAL, UCX or PMIx settings)",
            ranks=wrong,
        )
    ]


def _num_local(facts: Sequence[RankFacts], places: Places) -> list[Finding]:
    sizes = [len(places.ranks_of[node]) for node in places.node_ids]
    wrong = [
        r for r, its in enumerate(facts) if its.num_local is not None and its.num_local != sizes[r]
    ]
    if not wrong:
        return []
    r = wrong[0]
    return [
        warning(
            f"the launcher started {facts[r].num_local} ranks on the host of world rank {r}, but "
            f"{sizes[r]} share its memory",
            why="ranks that could share memory send messages instead",
            fix="let all ranks of a host share /dev/shm and the IPC namespace",
            ranks=wrong,
        )
    ]


def _uneven(places: Places) -> list[Finding]:
    sizes = [len(ranks) for ranks in places.ranks_of]
    if len(set(sizes)) == 1:
        return []
    parts = [f"{size} on {places.host_of(node)}" for node, size in enumerate(sizes)]
    return [
        warning(
            f"nodes have different numbers of ranks: {some(parts)}",
            why="all wait for the fullest node in every layer, and the others idle",
            fix="start the same number a node (Slurm: --ntasks-per-node; mpirun: -ppn or --map-by)",
        )
    ]


CHECK = Check(name="ranks", gather=gather, judge=judge)
