"""Check `threads`: threads of the ranks against the cores they may use."""

from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.cores import allowed_cpus, own_cpus, quota_cores
from janus_hpc.doctor.finding import Finding, fine, warning
from janus_hpc.launch import LaunchEnv, threads_per_rank


@dataclass(frozen=True, kw_only=True)
class ThreadFacts:
    """`own`: CPUs the rank is bound to; `allowed`: CPUs it could be bound to; `quota`: cores' worth of
    time, None without a limit; `asked`: threads by --threads or OMP_NUM_THREADS, None where neither.
    """

    own: frozenset[int]
    allowed: frozenset[int]
    quota: float | None
    asked: int | None


def gather(context: Context) -> ThreadFacts:
    """Asks the kernel."""
    return ThreadFacts(
        own=own_cpus(),
        allowed=allowed_cpus(),
        quota=quota_cores(),
        asked=context.target.threads or context.env.omp_threads,
    )


def judge(facts: Sequence[ThreadFacts], context: Context) -> list[Finding]:
    """Pure. One finding a node at most: they hang together."""
    findings, texts = [], set()
    for node, ranks in enumerate(context.places.ranks_of):
        on_node = [facts[r] for r in ranks]
        found = _judge_node(on_node, ranks, context.places.host_of(node))
        if found is not None:
            findings.append(found)
        texts.add(_summary(on_node))
    return findings or [fine("; ".join(sorted(texts)))]


def _num_threads(facts: Sequence[ThreadFacts]) -> int:
    """Threads of all ranks of a node."""
    cores = len(frozenset().union(*(its.own for its in facts)))
    return sum(
        threads_per_rank(LaunchEnv(omp_threads=its.asked), cores, len(facts)).num_threads
        for its in facts
    )


def _summary(facts: Sequence[ThreadFacts]) -> str:
    cores = len(frozenset().union(*(its.own for its in facts)))
    ranks = "1 rank" if len(facts) == 1 else f"{len(facts)} ranks"
    return f"{ranks} a node, {_num_threads(facts)} threads on {cores} cores"


def _judge_node(facts: Sequence[ThreadFacts], ranks: Sequence[int], host: str) -> Finding | None:
    cores = frozenset().union(*(its.own for its in facts))
    allowed = frozenset().union(*(its.allowed for its in facts)) | cores
    num_threads = _num_threads(facts)
    quotas = [its.quota for its in facts if its.quota is not None]
    asked = any(its.asked for its in facts)
    if len(cores) < len(facts) <= len(allowed):
        return _on_top(facts, ranks, host, len(cores), len(allowed))
    if len(facts) > len(cores):
        return warning(
            f"{host}: {len(facts)} ranks on {len(cores)} cores",
            why="ranks take turns on the cores, and every message waits for its receiver's turn: "
            "results are the same, the speed is not",
            fix="start at most one rank a core (a trial on a small machine may ignore this)",
            ranks=ranks,
        )
    if quotas and min(quotas) < num_threads - 0.5:
        return warning(
            f"{host}: {num_threads} threads, but the control group grants {min(quotas):g} cores' worth "
            "of time",
            why="threads that have used up their share stand still for tenths of a second, and all "
            "ranks wait for them",
            fix=f"set OMP_NUM_THREADS={max(1, int(min(quotas) / len(facts)))}, or raise the limit "
            "(docker: --cpus)",
            ranks=ranks,
        )
    if asked and num_threads > len(cores):
        return warning(
            f"{host}: {len(facts)} ranks with {num_threads} threads together on {len(cores)} cores",
            why="threads of one product wait for each other while others have their core: several "
            "times slower than fewer threads",
            fix=f"set OMP_NUM_THREADS={max(1, len(cores) // len(facts))}, or leave it unset",
            ranks=ranks,
        )
    if len(allowed) >= 2 * len(cores) and _are_bound(facts):
        return _idle(ranks, host, len(cores), len(allowed))
    return None


def _are_bound(facts: Sequence[ThreadFacts]) -> bool:
    return all(len(its.own) < len(its.allowed) for its in facts)


def _on_top(
    facts: Sequence[ThreadFacts], ranks: Sequence[int], host: str, num_cores: int, num_allowed: int
) -> Finding:
    return warning(
        f"{host}: {len(facts)} ranks are bound to the same {num_cores} of {num_allowed} cores",
        why="they take turns on these while other cores idle",
        fix="bind each rank to cores of its own: srun --cpu-bind=cores with --cpus-per-task; MPICH: "
        "-bind-to core; Open MPI: --map-by slot:PE=N; or bind none",
        ranks=ranks,
    )


def _idle(ranks: Sequence[int], host: str, num_cores: int, num_allowed: int) -> Finding:
    return warning(
        f"{host}: the ranks are bound to {num_cores} of the {num_allowed} cores they could use",
        why="the other cores idle: a rank gets as many threads as it is bound to cores",
        fix="srun does not inherit sbatch's --cpus-per-task: give it to srun, too, or set "
        "SRUN_CPUS_PER_TASK; Open MPI: --bind-to none or --map-by slot:PE=N",
        ranks=ranks,
    )


CHECK = Check(name="threads", gather=gather, judge=judge)
