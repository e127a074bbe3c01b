"""What is said of one candidate: its name, and in words why it cannot be taken. Decides nothing."""

import math
from functools import cached_property

import numpy as np

from janus_hpc.plan.decide import Decision
from janus_hpc.plan.request import Request
from janus_hpc.planner.memory import cache_bytes, largest_batch
from janus_hpc.planner.search import DEADLINE, MEMORY, NODES, OK, RATE, SLO
from janus_hpc.planner.system import Ints, System

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Words:
    """Of the candidates of one decision, by index."""

    def __init__(self, request: Request, system: System, decision: Decision) -> None:
        self._request, self._system, self._judged = request, system, decision.judged

    def name(self, at: int) -> str:
        """`2a6e`, or `8c` for colocated ranks."""
        grid = self._judged.grid
        if grid.colocated[at]:
            return f"{grid.num_expert[at]}c"
        return f"{grid.num_attention[at]}a{grid.num_expert[at]}e"

    def num_ranks(self, at: int) -> int:
        """Ranks of both roles."""
        return int(self._ranks[at])

    def reason(self, at: int) -> str:
        """Why it is refused; empty for a feasible one."""
        number = int(self._judged.reason[at])
        if number == OK:
            return ""
        if number == MEMORY:
            return f"memory: {self._too_large(at)}"
        if number == NODES:
            return (
                f"nodes: its {self.num_ranks(at)} ranks do not fit a node of {self._system.node_size}, "
                "and the profile has no rate between nodes"
            )
        if number == RATE:
            return f"the rate needs more than {self._most(at)}"
        if number == DEADLINE:
            assert self._judged.job_s is not None
            took, limit = self._judged.job_s[at], self._request.deadline_s
            return f"deadline: {duration(took)} is over {duration(limit)}"
        assert number == SLO, f"{number=}"
        return self._too_slow(at)

    def limit(self, at: int) -> str:
        """What keeps a feasible candidate's batch from being larger, where the SLO does not."""
        return self._most(at) if self._judged.batch[at] >= self.largest[at] else ""

    def excess_bytes(self, at: int) -> float:
        """How much memory the fuller role lacks for one sequence."""
        needed, has = self._needs(at)
        return needed - has

    @cached_property
    def _ranks(self) -> Ints:
        return self._judged.grid.num_ranks()

    @cached_property
    def largest(self) -> Ints:
        """The most sequences that each candidate holds."""
        return largest_batch(self._system, self._judged.grid)

    def _most(self, at: int) -> str:
        most = int(self.largest[at])
        asked = self._system.max_sequences * int(self._judged.grid.num_attention[at])
        by = "that --max-sequences allows" if most == asked else "that memory holds"
        return f"the {most} {'sequence' if most == 1 else 'sequences'} {by}"

    def _too_slow(self, at: int) -> str:
        tpot_s, limit_s = float(self._judged.times.tpot_s[at]), self._request.slo_s
        alone = " with one sequence in flight" if self._judged.batch[at] <= 1 else ""
        if self._request.slo_percentile == "p99":
            tpot_s *= self._system.slo_ratio
            return f"P99 of TPOT, {ms(tpot_s)}{alone}, is over {ms(limit_s)}"
        return f"TPOT {ms(tpot_s)}{alone} is over {ms(limit_s)}"

    def _too_large(self, at: int) -> str:
        judged, system = self._judged, self._system
        needed, has = self._needs(at)
        role = "colocated" if judged.grid.colocated[at] else "attention"
        if judged.expert_bytes[at] > system.experts.hardware.memory_bytes and role != "colocated":
            return f"an expert rank needs {size(needed)} of {size(has)}"
        cache = size(float(cache_bytes(system, np.ones(1))[0]))
        article = "a" if role == "colocated" else "an"
        return f"{article} {role} rank needs {size(needed)} of {size(has)}, {cache} of it for one sequence"

    def _needs(self, at: int) -> tuple[float, float]:
        """Of the role that lacks more, bytes for one sequence and bytes it has."""
        judged, system = self._judged, self._system
        has_A, has_E = (
            float(its.hardware.memory_bytes) for its in (system.attention, system.experts)
        )
        needs_A, needs_E = float(judged.attention_bytes[at]), float(judged.expert_bytes[at])
        if not judged.grid.colocated[at] and needs_E > has_E:
            return needs_E, has_E
        return needs_A, has_A


def ms(seconds: float) -> str:
    """`32.9 ms`."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds * 1000:.0f} ms"


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """`91.2 GB`, in powers of ten."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """`2:03:04` or `12.3 s`."""
    if not math.isfinite(seconds):
        return "forever"
    if seconds < 120:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
