"""From options and a job file to what a plan is asked for: flags win over the file's keys.

Knows which keys of a run a plan starts from. What a plan decides (split, slots, microbatches, exchange) it does not
read.
"""

from pathlib import Path
from typing import Any

from janus_hpc.config import is_name, load_job
from janus_hpc.errors import UsageError
from janus_hpc.plan.request import REFUSED_PAIRS, Request

# Under the same name in a run and in a plan.
_SHARED = (
    "dtype",
    "slo_percentile",
    "max_tokens",
    "balance",
    "gate",
    "max_sequences",
    "max_step_tokens",
)


def make_request(options: dict[str, Any], given: set[str]) -> Request:
    """`options`: all of `janus-hpc plan`, with defaults; `given`: names of those on the command line.

    A key of the job file gives way to the flag of its name, and to one that cannot stand beside it.
    Errors: UsageError without a profile, for a job file with a fault, and where its model is not here
    and its table [plan] names no shape.
    """
    values = dict(options)
    if values["job"] is not None:
        displaced = {other for name in given for other in _excluded_by(name)}
        for key, value in _of_job(values["job"], given).items():
            if value is not None and key not in given | displaced:
                values[key] = value
    if values["profile"] is None:
        raise UsageError(
            "no profile given: --profile takes a file of janus-hpc profile, or a shipped hardware's name; "
            "a job file names it in its table [plan]"
        )
    # A measured profile says itself which model it is of.
    if not is_name(values["profile"]) and "shape" not in given:
        values["shape"] = None
    return Request(**values)


def _of_job(job: Path, given: set[str]) -> dict[str, Any]:
    """What the file says for a plan, under the options' names."""
    run, table = load_job(job)
    values: dict[str, Any] = {name: getattr(run, name) for name in _SHARED}
    values["profile"] = run.profile
    values["slo_tpot_ms"] = run.slo_tpot_ms or None
    values["trace"] = run.placement_from and Path(run.placement_from)
    values["prompts"] = Path(run.prompts) if run.prompts and table.rows is None else None
    values |= {
        name: getattr(table, name)
        for name in table.__struct_fields__
        if getattr(table, name) is not None
    }
    if run.model is not None and Path(run.model).is_dir():
        return values | {"model": Path(run.model), "shape": None}
    if run.model is not None and table.shape is None and not {"shape", "model"} & given:
        raise UsageError(
            f"{job}: model folder {run.model} does not exist here; give --model DIR, or name its shape in [plan]"
        )
    return values


def _excluded_by(name: str) -> set[str]:
    """Options that cannot be given together with this one."""
    return {
        other
        for one, two, _ in REFUSED_PAIRS
        for this, other in ((one, two), (two, one))
        if this == name
    }
