"""A run's status in words, and as the record that --json writes. Pure."""

from typing import Any

import msgspec

from janus_hpc.status.runs import RunStatus, utilisation
from janus_hpc.watch.beat import Beat

# Longer waits are worth a line.
LONG_WAIT_S = 10.0
_MOST_WAITS = 5


def lines(run: RunStatus, before: dict[int, Beat]) -> list[str]:
    """What a person wants to know; `before`: heartbeats of an earlier look, for what came since."""
    found = [f"{run.output}: {run.state}{_news(run)}"]
    told = run.progress
    if told is not None:
        percent = f" ({100 * told.rows_done / told.rows:.1f} %)" if told.rows else ""
        found.append(
            f"  rows      {told.rows_done} of {told.rows}{percent}, {told.rows_failed} failed, "
            f"{told.rows_in_flight} in flight"
        )
        is_going = told.eta_s is not None and run.state == "running"
        eta = f", {duration(told.eta_s or 0.0)} to go" if is_going else ""
        found.append(
            f"  rate      {told.tokens_per_s:.0f} tokens/s over {duration(told.elapsed_s)}{eta}"
        )
    for role, (count, share) in utilisation(run.beats, before).items():
        ranks = "rank" if count == 1 else "ranks"
        found.append(f"  {role:<9} {count} {ranks}, computing {100 * share:.0f} % of the time")
    if run.beats:
        most = max(its.rss_bytes for its in run.beats.values())
        found.append(f"  memory    at most {most / 1e9:.2f} GB a rank")
    return found + _waits(run)


def record(run: RunStatus, before: dict[int, Beat]) -> dict[str, Any]:
    """The same for programs."""
    roles = utilisation(run.beats, before)
    return {
        "output": str(run.output),
        "state": run.state,
        "age_s": round(run.age_s, 3) if run.age_s < 1e12 else None,
        "progress": None if run.progress is None else msgspec.to_builtins(run.progress),
        "roles": {
            its: {"ranks": count, "utilisation": share} for its, (count, share) in roles.items()
        },
        "ranks": [
            {
                "world_rank": rank,
                "label": beat.label,
                "where": beat.where,
                "waiting": beat.waiting,
                "waiting_s": beat.waiting_s,
                "rss_bytes": beat.rss_bytes,
            }
            for rank, beat in sorted(run.beats.items())
        ],
    }


def duration(seconds: float) -> str:
    """In the units a person would take."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _news(run: RunStatus) -> str:
    if run.age_s > 1e12 or run.state == "complete":
        return ""
    return f", last heard of {duration(max(run.age_s, 0.0))} ago"


def _waits(run: RunStatus) -> list[str]:
    if run.state not in ("running", "no news"):
        return []
    long = [its for its in run.beats.values() if its.waiting_s > LONG_WAIT_S and its.in_steps]
    long.sort(key=lambda its: -its.waiting_s)
    return [
        f"  waits     [{its.label}] for {duration(its.waiting_s)}: {its.waiting}"
        for its in long[:_MOST_WAITS]
    ]
