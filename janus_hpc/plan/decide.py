"""Which candidate it will be: the search for the objective over all candidates, and where the chosen one stands.

Knows objectives; what is said about candidates is `reasons`' and `explain`'s.
"""

from dataclasses import dataclass, replace
from typing import Literal

from janus_hpc.plan.request import Objective, Request
from janus_hpc.planner.chunks import in_chunks
from janus_hpc.planner.loading import load_s
from janus_hpc.planner.search import Judged, Workload, for_rate, for_rows, for_speed, job_s
from janus_hpc.planner.system import Floats, Grid, Ints, System, make_grid

_ORDER: dict[Objective, Literal["cost", "speed", "job", "time"]] = {
    "rate": "cost",
    "speed": "speed",
    "fastest": "time",
    "cheapest": "job",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """All candidates judged, and `ranking`: their indices, the best first. `load_s`: until each one's ranks
    have their weights; it is part of job_s, where rows were given.
    """

    objective: Objective
    judged: Judged
    ranking: Ints
    load_s: Floats
    work: Workload | None

    @property
    def chosen(self) -> int | None:
        """The best candidate's index; None where no candidate is feasible."""
        if not len(self.ranking) or not self.judged.feasible[self.ranking[0]]:
            return None
        return int(self.ranking[0])

    def best(self, *, colocated: bool) -> int | None:
        """The best feasible candidate of one kind."""
        fits = self.judged.feasible & (self.judged.grid.colocated == colocated)
        ranked = self.ranking[fits[self.ranking]]
        return int(ranked[0]) if len(ranked) else None


def candidates(request: Request, system: System) -> Grid:
    """All splits of at most so many ranks; colocated ones where ranks are alike."""
    most = request.most_ranks
    numbers = range(1, most + 1)
    return make_grid(
        system,
        numbers,
        numbers,
        colocated=numbers if system.is_uniform else (),
        max_ranks=most,
        slots=request.slots,
    )


def decide(request: Request, system: System, grid: Grid, work: Workload | None) -> Decision:
    """Judge and rank all candidates. `work`: the rows, where they are known."""
    objective, slo_s = request.objective, request.slo_s
    loading_s = load_s(system, grid)

    def judge(part: Grid) -> Judged:
        if objective == "rate":
            assert request.rate is not None, f"{request=}"
            judged = for_rate(system, part, request.rate, slo_s)
        elif objective == "speed":
            judged = for_speed(system, part, slo_s)
        else:
            assert work is not None, f"{request=}"
            left_s = request.deadline_s - load_s(system, part)
            return for_rows(system, part, work, slo_s, deadline_s=left_s)
        if work is None:
            return judged
        return replace(judged, job_s=job_s(system, part, judged.batch, judged.times, work))

    judged = in_chunks(grid, judge)
    if judged.job_s is not None:
        judged = replace(judged, job_s=judged.job_s + loading_s)
    return Decision(
        objective=objective,
        judged=judged,
        ranking=judged.order(_ORDER[objective]),
        load_s=loading_s,
        work=work,
    )
