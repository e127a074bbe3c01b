"""Check `clocks`: how far the wall clocks of nodes are apart."""

from collections.abc import Sequence

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, fine, warning

_MOST_S = 1.0

Offsets = dict[int, tuple[float, float]]


def gather(context: Context) -> Offsets:
    """Node -> (seconds ahead of node 0, error bar); on rank 0 alone, {} elsewhere."""
    world = context.world
    if world is None or context.places.num_nodes == 1:
        raise Skip("one node: one clock")
    from janus_hpc.comm.clocks import clock_offsets

    return clock_offsets(world)


def judge(facts: Sequence[Offsets], context: Context) -> list[Finding]:
    """Pure."""
    findings, places = [], context.places
    for node, (offset_s, error_s) in facts[0].items():
        if abs(offset_s) - error_s > _MOST_S:
            ahead = "ahead of" if offset_s > 0 else "behind"
            findings.append(
                warning(
                    f"the clock of {places.host_of(node)} is {abs(offset_s):.3g} s {ahead} that of "
                    f"{places.host_of(0)} (+- {error_s:.2g} s)",
                    why="file times, logs and timelines of these hosts do not fit together, and a rank may stop "
                    "too late for the job's end",
                    fix="have the site set the clock by NTP (chronyc tracking, timedatectl)",
                    ranks=places.ranks_of[node],
                )
            )
    worst_s = max((abs(offset_s) for offset_s, _ in facts[0].values()), default=0.0)
    error_s = max((its for _, its in facts[0].values()), default=0.0)
    count = len(facts[0]) + 1
    return findings or [
        fine(f"{count} nodes within {worst_s * 1e3:.2g} ms of node 0 (+- {error_s * 1e3:.2g} ms)")
    ]


CHECK = Check(name="clocks", gather=gather, judge=judge, communicates=True)
