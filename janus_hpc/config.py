"""What can be set for a run: names, types, defaults, meanings; flags and job files share this one list.

Reads job files; knows nothing of what the options do.
"""

import math
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from janus_hpc.errors import UsageError

Help = msgspec.Meta
MAX_INT = 2**31 - 1
# Seeds are 64-bit; a process cannot have as many threads as it can count.
_MOST = {"seed": 2**63 - 1, "threads": 4096}
# 255 is what file systems take; files beside the results file have longer names than it.
MAX_NAME_BYTES = 240
MAX_PATH_BYTES = 3000
_PATHS = frozenset(
    {
        *("prompts", "model", "output", "exchange_table", "placement_from", "profile"),
        *("routing_trace", "trace", "metrics"),
    }
)
_MAX_SHOWN = 200
# The table of a job file that a run does not read.
_PLAN = "plan"
_Keys = TypeVar("_Keys", bound=msgspec.Struct)


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options of `janus-hpc infer`. A flag is the key with dashes; a flag overrides a job file's key."""

    prompts: Annotated[str, Help(description="JSONL file of rows")]
    model: Annotated[
        str | None, Help(description="model folder (default: the demo model in the package)")
    ] = None
    output: Annotated[
        str | None, Help(description="results file (default: <prompts>.h5 in the working folder)")
    ] = None
    split: Annotated[str, Help(description="ranks per role: auto, colocated, or e.g. 1a3e")] = (
        "auto"
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Help(description="where tensors live")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Help(description="weights and KV cache; auto takes the checkpoint's"),
    ] = "auto"
    exchange: Annotated[
        Literal["auto", "host", "shm", "device", "one-phase", "direct", "relay"],
        Help(description="how hidden states travel; auto takes what costs least between nodes"),
    ] = "auto"
    exchange_table: Annotated[
        str | None, Help(description="costs measured by profile --exchange, for auto")
    ] = None
    inter: Annotated[
        Literal["auto", "ucx", "mpi"], Help(description="link between nodes, not for host")
    ] = "auto"
    gate: Annotated[
        Literal["egate", "agate"],
        Help(description="where tokens are routed: on the expert side, or on the attention side"),
    ] = "egate"
    slots: Annotated[
        int,
        Help(
            description="experts an expert rank holds a layer (0: a quarter more than needed, "
            "where half the memory holds them)",
            ge=0,
        ),
    ] = 0
    placement: Annotated[
        Literal["auto", "janus", "eplb", "contiguous"],
        Help(description="which experts lie together; auto: janus where a trace is given"),
    ] = "auto"
    placement_from: Annotated[
        str | None, Help(description="place by the routing in this trace or results file")
    ] = None
    balance: Annotated[
        Literal["aebs", "greedy", "eplb", "random", "first"],
        Help(description="which replica of an expert serves: aebs evens out activated experts"),
    ] = "aebs"
    batch_rows: Annotated[
        int,
        Help(
            description="rows between two looks at the placement and the split (0: all in one batch)",
            ge=0,
        ),
    ] = 0
    rebalance: Annotated[
        Literal["auto", "always", "off"],
        Help(description="between batches: move experts where that pays, always, or never"),
    ] = "auto"
    replan: Annotated[
        str,
        Help(
            description="between batches ranks change roles: off, auto (as the SLO asks), or splits "
            "taken in turn, e.g. 2a2e,1a3e"
        ),
    ] = "off"
    slo_tpot_ms: Annotated[
        float, Help(description="longest time per output token, milliseconds (0: none)", ge=0)
    ] = 0.0
    slo_percentile: Annotated[
        Literal["mean", "p99"], Help(description="what of the times per output token must keep it")
    ] = "mean"
    profile: Annotated[
        str | None, Help(description="costs of attention, experts and exchange, for the planner")
    ] = None
    colocate: Annotated[
        Literal["auto", "never"],
        Help(description="whether the planner may let ranks do attention and experts"),
    ] = "auto"
    routing_trace: Annotated[str | None, Help(description="also write the routing trace here")] = (
        None
    )
    trace: Annotated[
        str | None,
        Help(description="write a timeline of all ranks here, for Perfetto or chrome://tracing"),
    ] = None
    metrics: Annotated[
        str | None, Help(description="keep a file of metrics for Prometheus's textfile collector")
    ] = None
    shard: Annotated[
        str, Help(description="answer only part K of N of the rows, e.g. 2/3 (default: all)")
    ] = ""
    microbatches: Annotated[
        Literal["auto", "1", "2", "3", "4"],
        Help(description="parts of a step under way at once; auto measures"),
    ] = "auto"
    threads: Annotated[int, Help(description="threads a rank (0: cores over ranks)", ge=0)] = 0
    seed: Annotated[int, Help(description="seed of rows that name none", ge=0)] = 0
    max_tokens: Annotated[int, Help(description="for rows that name none", ge=1)] = 256
    temperature: Annotated[float, Help(description="for rows that name none", ge=0)] = 1.0
    max_sequences: Annotated[
        int, Help(description="sequences in flight an attention rank", ge=1)
    ] = 128
    max_step_tokens: Annotated[
        int, Help(description="tokens a step and attention rank, prefill included", ge=1)
    ] = 512
    kv_memory: Annotated[
        str, Help(description="KV cache an attention rank: auto, or e.g. 512MB, 40GB")
    ] = "auto"
    block_size: Annotated[int, Help(description="tokens a KV block", ge=1)] = 16
    max_context: Annotated[
        int, Help(description="longest sequence (0: the model's context)", ge=0)
    ] = 0
    strict: Annotated[bool, Help(description="refuse a file with any bad row")] = False
    fresh: Annotated[
        bool, Help(description="discard an unfinished run's rows instead of resuming")
    ] = False
    overwrite: Annotated[bool, Help(description="replace an existing results file")] = False
    retry_failed: Annotated[
        bool, Help(description="on resume, compute rows again that ended in an error")
    ] = False
    drain_s: Annotated[
        float,
        Help(
            description="stop so long before the Slurm job's end, at most a tenth of its time", ge=0
        ),
    ] = 120.0
    stall_s: Annotated[
        float,
        Help(description="end the job where no rank gets on for so long (0: never)", ge=0),
    ] = 300.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Help(description="least that is logged")
    ] = "info"
    comm_timeout_s: Annotated[float, Help(description="longest wait for a peer, seconds", gt=0)] = (
        600.0
    )


_Count = Annotated[int, Help(ge=1)]
_Positive = Annotated[float, Help(gt=0)]


class PlanTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [plan] of a job file: options of `janus-hpc plan --job`, which a run does not need."""

    profile: str | None = None
    expert_profile: str | None = None
    shape: str | None = None
    rate: _Positive | None = None
    ranks: _Count | None = None
    max_ranks: _Count | None = None
    rows: _Count | None = None
    mean_prompt: _Positive | None = None
    mean_answer: _Positive | None = None
    deadline: str | None = None
    context: _Positive | None = None
    context_std: Annotated[float, Help(ge=0)] | None = None
    ranks_per_node: _Count | None = None
    price_attention: _Positive | None = None
    price_expert: _Positive | None = None


def load(job: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Merge a job file with flags (which win) and check every value.

    Relative `prompts`, `model`, `exchange_table`, `placement_from` and `profile` in a job file are relative to
    the job file (a profile that is a bare name is a shipped one), `output`, `metrics` and traces to the working folder.
    Errors: UsageError naming file and key; an unknown key lists the valid ones.
    """
    values: dict[str, Any] = {} if job is None else _read_job(job)
    values.pop(_PLAN, None)
    values |= overrides
    if "prompts" not in values:
        raise UsageError("no prompts file given: name one on the command line or in the job file")
    return _checked(values, job, overrides)


def load_job(job: Path) -> tuple[RunConfig, PlanTable]:
    """A job file as `load` reads it, and its table [plan]; `prompts` is "" where the file names none.

    Errors: UsageError as for `load`.
    """
    values = _read_job(job)
    table: PlanTable = values.pop(_PLAN)
    return _checked({"prompts": ""} | values, job, {}), table


def _checked(values: dict[str, Any], job: Path | None, overrides: dict[str, Any]) -> RunConfig:
    def name(key: str) -> str:
        return f"--{key.replace('_', '-')}" if key in overrides else f"{job}: key {key!r}"

    return _converted(values, RunConfig, name)


def _converted(values: dict[str, Any], kind: type[_Keys], name: Callable[[str], str]) -> _Keys:
    """All values checked; `name` says in messages where a key stands."""

    def refuse(key: str, reason: str) -> UsageError:
        found = repr(values.get(key))
        if len(found) > _MAX_SHOWN:
            found = found[:_MAX_SHOWN] + "..."
        return UsageError(f"{name(key)}: {reason}, got {found}{_choices(key)}")

    try:
        checked = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise refuse(path.rstrip("`"), reason) from error
    for key in kind.__struct_fields__:
        if reason := _fault(key, getattr(checked, key)):
            raise refuse(key, reason)
    return checked


def _fault(key: str, value: Any) -> str:
    """What types alone do not say of a value; empty if nothing is wrong."""
    if type(value) is int and value > _MOST.get(key, MAX_INT):
        return f"expected at most {_MOST.get(key, MAX_INT)}"
    if type(value) is float and not value < math.inf:
        return "expected a finite number"
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "expected a text without NUL"
    if key in _PATHS and any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in Path(value).parts):
        return f"a file name has more than {MAX_NAME_BYTES} bytes"
    if key in _PATHS and len(os.fsencode(value)) > MAX_PATH_BYTES:
        return f"a path has more than {MAX_PATH_BYTES} bytes"
    return ""


def is_name(profile: str) -> bool:
    """Whether a profile is given by the name of a shipped one, not by a file's path."""
    return "/" not in profile and "." not in profile


def _choices(key: str) -> str:
    """The valid values of a key that has a fixed list of them."""
    kind = get_type_hints(RunConfig).get(key)
    return f"; one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""


def _read_job(job: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(job.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"job file {job} does not exist") from error
    # ValueError: not UTF-8, no TOML, or a number of more digits than Python reads.
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{job}: cannot be read as TOML: {error}") from error
    valid = RunConfig.__struct_fields__
    table = values.pop(_PLAN, {})
    _check_keys(job, "", values, valid)
    if type(values.get("microbatches")) is int:
        values["microbatches"] = str(values["microbatches"])
    for key in ("prompts", "model", "exchange_table", "placement_from", "profile"):
        if isinstance(values.get(key), str) and not (key == "profile" and is_name(values[key])):
            values[key] = str(job.parent / values[key])
    return values | {_PLAN: _plan_table(job, table)}


def _check_keys(job: Path, where: str, values: dict[str, Any], valid: tuple[str, ...]) -> None:
    for key in values:
        if key not in valid:
            raise UsageError(
                f"{job}: unknown key {key!r}{where}; valid keys are {', '.join(sorted(valid))}"
            )


def _plan_table(job: Path, values: Any) -> PlanTable:
    if not isinstance(values, dict):
        raise UsageError(f"{job}: {_PLAN!r} is a table of its own: [{_PLAN}] and its keys below it")
    _check_keys(job, f" in [{_PLAN}]", values, PlanTable.__struct_fields__)
    for key in ("profile", "expert_profile"):
        if isinstance(values.get(key), str) and not is_name(values[key]):
            values[key] = str(job.parent / values[key])
    return _converted(values, PlanTable, lambda key: f"{job}: key {key!r} in [{_PLAN}]")


def parse_bytes(text: str, key: str) -> int:
    """`512MB`, `40 GiB`, `1000` -> bytes. Errors: UsageError naming the key and the accepted forms."""
    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1000**power, letter + "b": 1000**power, letter + "ib": 1024**power}
    stripped = text.strip().lower()
    digits = stripped.rstrip("bikmgt ")
    unit = stripped[len(digits) :].strip()
    try:
        size = int(float(digits) * units[unit])
        if size < 0:
            raise ValueError(size)
        return size
    except (ValueError, KeyError, OverflowError) as error:
        raise UsageError(f"{key}: expected a size such as 512MB or 40GiB, got {text!r}") from error
