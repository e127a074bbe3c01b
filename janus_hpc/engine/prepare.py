"""Rank 0's decisions before the work begins: every check that can refuse a run, and the plan all ranks receive.

Runs on world rank 0 alone. Raises UsageError for what a user can mend; writes nothing but the run folder.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import janus_hpc
from janus_hpc.config import RunConfig, parse_bytes
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.decision import Assignment
from janus_hpc.engine.placing import choose_placement, expert_nodes
from janus_hpc.engine.plan import Allocation, RunPlan
from janus_hpc.engine.progress import progress_path
from janus_hpc.engine.row_input import row_defaults
from janus_hpc.engine.run_folder import (
    LOCK_WAIT_S,
    came_back,
    discard,
    is_restart,
    launch_info,
)
from janus_hpc.engine.shard import shard_rows
from janus_hpc.errors import ModelError, UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.registry import ignored_tensors, load_spec
from janus_hpc.models.spec import DTYPE_BYTES, ModelSpec
from janus_hpc.placement.placement import Placement
from janus_hpc.planner.split import default_split
from janus_hpc.results.done import load_done
from janus_hpc.results.durable import check_replaceable
from janus_hpc.results.lock import run_lock
from janus_hpc.results.manifest import (
    began_at_unix_s,
    differences,
    fingerprint_bytes,
    load_manifest,
    run_dir_for,
    start_launch,
)
from janus_hpc.results.reader import ResultsFile
from janus_hpc.rows.index import InputIndex, build_index
from janus_hpc.rows.index_file import INDEX_NAME
from janus_hpc.rows.reader import RowReader, first_errors
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.tokenizer import TextCodec
from janus_hpc.topology import Role, Split, assign_roles, parse_split
from janus_hpc.weights.checkpoint import Checkpoint
from janus_hpc.weights.fingerprint import fingerprint

log = logging.getLogger(__name__)

# A job that Slurm lets run on past its end does so for less.
STALE_END_S = 3600.0
MAX_REFUSALS_SHOWN = 10


@dataclass(frozen=True)
class AlreadyComplete:
    """The results file of this very run exists; there is nothing to do."""

    output: Path
    num_rows: int
    num_failed: int


def prepare(
    config: RunConfig,
    env: LaunchEnv,
    allocation: Allocation,
    held: ExitStack,
) -> RunPlan | AlreadyComplete:
    """Check everything, index the input, open or start the run folder, and decide the plan.

    The run folder's lock is entered into `held`. Errors: UsageError (exit 2), naming file, key, expected and
    found; a run folder made here is then removed again.
    """
    with _no_litter(paths(config)[2]):
        return _decide(config, env, allocation, held)


@contextmanager
def _no_litter(run_dir: Path) -> Iterator[None]:
    """Remove a run folder that was made inside the block when the block refuses the run."""
    existed = run_dir.exists()
    try:
        yield
    except UsageError:
        if not existed and load_manifest(run_dir) is None:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def paths(config: RunConfig) -> tuple[Path, Path, Path]:
    """Prompts file, results file and run folder."""
    prompts = Path(config.prompts)
    output = Path(config.output or prompts.with_suffix(".h5").name)
    return prompts, output, run_dir_for(output)


def _decide(
    config: RunConfig,
    env: LaunchEnv,
    allocation: Allocation,
    held: ExitStack,
) -> RunPlan | AlreadyComplete:
    prompts, output, run_dir = paths(config)
    model_dir = Path(config.model) if config.model else demo_model_dir()
    _check_kv_memory(config)
    spec = load_spec(model_dir)
    dtype = run_dtype(config, spec, model_dir)
    with Checkpoint(model_dir) as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
    max_context = _max_context(config, spec)
    turns = read_turns(config, spec, allocation.node_ids)
    first = _first_split(config, spec, allocation.node_ids, turns)
    for its in (first, *turns):
        _check_exchange(config, its.roles, allocation.node_ids)
    place = partial(_place, config, spec, allocation, DTYPE_BYTES[dtype])
    for its in turns:
        place(its)
    placement, slots_why = place(first)
    if TextCodec.load(model_dir) is None:
        load_eos_token_ids(model_dir)
    if not prompts.is_file():
        raise UsageError(f"prompts file {prompts} does not exist or is not a file")
    _check_writable(output, run_dir)
    held.enter_context(run_lock(run_dir, LOCK_WAIT_S if is_restart(env) else 0.0))
    index_path = run_dir / INDEX_NAME
    index = build_index(prompts, index_path)
    rows = shard_rows(config.shard, index.num_rows)
    if config.strict:
        _refuse_bad_rows(prompts, index, config)
    fields = _fingerprint_fields(config, index, rows, model_dir, dtype, max_context)
    if output.exists() and not config.overwrite:
        return _already_complete(config, output, fields, run_dir)
    is_fresh = config.fresh and not came_back(run_dir, env)
    resumes = not is_fresh and load_manifest(run_dir) is not None
    _check_traces(config, (output, prompts), resumes=resumes)
    if is_fresh:
        discard(run_dir)
    manifest, launch = start_launch(
        run_dir, fields, launch_info(config, env, allocation.hosts, model_dir)
    )
    digest = fingerprint_bytes(fields)
    done = load_done(run_dir, index.num_rows, digest, config.retry_failed)
    is_done = np.ones(index.num_rows, np.bool_)
    is_done[rows.start : rows.stop] = done.done[rows.start : rows.stop]
    return RunPlan(
        config=config,
        spec=spec,
        model_dir=model_dir,
        output=output,
        run_dir=run_dir,
        index_path=index_path,
        split=first.split,
        split_why=first.why,
        roles=first.roles,
        turns=turns,
        room_bytes=allocation.room_bytes,
        placement=placement,
        slots_why=slots_why,
        dtype=dtype,
        device=allocation.device,
        max_context=max_context,
        launch=launch.number,
        began_at_unix_s=began_at_unix_s(run_dir, manifest),
        fingerprint=digest,
        fingerprint_fields=fields,
        num_rows=index.num_rows,
        first_row=rows.start,
        stop_row=rows.stop,
        in_flight=done.in_flight,
        job_left_s=_job_left_s(env),
        num_resumed=done.num_done,
        num_failed=done.num_failed,
        done=np.packbits(is_done).tobytes(),
    )


def _job_left_s(env: LaunchEnv) -> float | None:
    """Seconds until the job's end; None where nothing limits it."""
    if env.job_end_unix_s is None:
        return None
    left_s = env.job_end_unix_s - time.time()
    if left_s < -STALE_END_S:
        log.warning("SLURM_JOB_END_TIME is long past (left over from another job?): not heeded")
        return None
    return max(left_s, 0.0)


def choose_split(text: str, spec: ModelSpec, num_ranks: int) -> tuple[Split, str]:
    """The split asked for, or the default rule's for `auto`, and why."""
    if text == "auto":
        return default_split(spec, num_ranks)
    return parse_split(text, num_ranks, spec.moe.num_experts), "asked for"


def read_turns(
    config: RunConfig, spec: ModelSpec, node_ids: Sequence[int]
) -> tuple[Assignment, ...]:
    """The splits of --replan, none for `off` and `auto`. UsageError naming the entry at fault."""
    if config.replan in ("off", "auto"):
        return ()
    turns: list[Assignment] = []
    texts = config.replan.split(",")
    for number, text in enumerate(texts, start=1):
        try:
            split = parse_split(text, len(node_ids), spec.moe.num_experts)
        except UsageError as error:
            raise UsageError(f"--replan {config.replan}: {error}; or off, or auto") from error
        turns.append(_assign(split, node_ids, f"entry {number} of {len(texts)} of --replan"))
    return tuple(turns)


def _first_split(
    config: RunConfig, spec: ModelSpec, node_ids: Sequence[int], turns: Sequence[Assignment]
) -> Assignment:
    """The split of the first batch: the first of --replan where --split names none."""
    if turns and config.split == "auto":
        return turns[0]
    split, why = choose_split(config.split, spec, len(node_ids))
    return _assign(split, node_ids, why)


def _assign(split: Split, node_ids: Sequence[int], why: str) -> Assignment:
    return Assignment(split=split, roles=tuple(assign_roles(split, list(node_ids))), why=why)


def _place(
    config: RunConfig, spec: ModelSpec, allocation: Allocation, itemsize: int, under: Assignment
) -> tuple[Placement, str]:
    """The placement under a split, and why it has so many slots. UsageError where there are too few."""
    nodes = expert_nodes(allocation.node_ids, under.roles)
    return choose_placement(config, spec, nodes, allocation.room_bytes, itemsize)


def run_dtype(config: RunConfig, spec: ModelSpec, model_dir: Path) -> str:
    """Of weights and cache: as asked, or the checkpoint's. ModelError for one that cannot be computed with."""
    dtype = spec.stored_dtype if config.dtype == "auto" else config.dtype
    if dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise ModelError(f"{model_dir / 'config.json'}: dtype {dtype!r} is not one of {known}")
    return dtype


def _max_context(config: RunConfig, spec: ModelSpec) -> int:
    if config.max_context > spec.max_context:
        raise UsageError(
            f"--max-context {config.max_context} exceeds the model's {spec.max_context} positions"
        )
    return config.max_context or spec.max_context


def _check_kv_memory(config: RunConfig) -> None:
    if config.kv_memory != "auto":
        parse_bytes(config.kv_memory, "--kv-memory")


def _check_exchange(config: RunConfig, roles: Sequence[Role], node_ids: Sequence[int]) -> None:
    if config.exchange == "host" and config.gate == "agate":
        raise UsageError("--exchange host has its gate on the expert side: take another, or egate")
    nodes = {node for node, role in zip(node_ids, roles, strict=True) if role is not Role.PARKED}
    if config.exchange == "shm" and len(nodes) > 1:
        raise UsageError(
            f"--exchange shm works inside one node, the active ranks are on {len(nodes)}: "
            "take auto or host"
        )


def _check_traces(config: RunConfig, others: Sequence[Path], *, resumes: bool) -> None:
    """Before the run: its traces can be written, and take no other file's place."""
    taken = [*others, progress_path(others[0])]
    # A run that goes on writes its timeline anew.
    overwrite = config.overwrite or resumes
    traces = (("--routing-trace", config.routing_trace), ("--trace", config.trace))
    for name, given in traces:
        if given is not None:
            _check_trace_file(Path(given), name, taken, overwrite)
            taken.append(Path(given))
    if config.metrics is not None:
        _check_trace_file(Path(config.metrics), "--metrics", taken, overwrite=True)


def _check_trace_file(path: Path, name: str, others: Sequence[Path], overwrite: bool) -> None:
    check_replaceable(path, name)
    if path.resolve() in [its.resolve() for its in others]:
        raise UsageError(f"{name} {path}: is another file of this run; name another")
    if path.exists() and not overwrite:
        raise UsageError(f"{name} {path} exists; name another file, or give --overwrite")
    probe = path.with_name(f".probe-{os.getpid()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{name} {path}: cannot write there: {error.strerror}") from error


def _check_writable(output: Path, run_dir: Path) -> None:
    check_replaceable(output, "output")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".probe-{os.getpid()}"
        probe.touch()
        os.replace(probe, run_dir / ".writable")
        (run_dir / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"cannot write results to {output.parent}: {error.strerror}") from error


def _refuse_bad_rows(prompts: Path, index: InputIndex, config: RunConfig) -> None:
    with RowReader(prompts, index, row_defaults(config)) as reader:
        errors = first_errors(reader, MAX_REFUSALS_SHOWN)
    if errors:
        lines = "\n".join(f"  line {e.line}, {e.field or 'whole line'}: {e.reason}" for e in errors)
        raise UsageError(f"{prompts} has bad rows, and --strict refuses them:\n{lines}")


def _fingerprint_fields(
    config: RunConfig,
    index: InputIndex,
    rows: range,
    model_dir: Path,
    dtype: str,
    max_context: int,
) -> dict[str, str | int | float | bool | None]:
    """What an answer depends on: two runs with equal fields may share finished rows."""
    return {
        "input_sha256": index.sha256,
        "num_rows": index.num_rows,
        "first_row": rows.start,
        "stop_row": rows.stop,
        "model_sha256": fingerprint(model_dir),
        "dtype": dtype,
        "max_context": max_context,
        "seed": config.seed,
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "janus_version": janus_hpc.__version__,
    }


def _already_complete(
    config: RunConfig,
    output: Path,
    fields: dict[str, str | int | float | bool | None],
    run_dir: Path,
) -> AlreadyComplete:
    """An existing file is either this run's, finished, or not ours to replace."""
    manifest = load_manifest(run_dir)
    if manifest is None or manifest.fingerprint == fields:  # made just now, or left by a late kill
        # On NFS the lock that is held keeps the folder.
        shutil.rmtree(run_dir, ignore_errors=True)
    with ResultsFile(output) as results:
        found = results.attrs.get("fingerprint")
        found = json.loads(found) if isinstance(found, str) else found or {}
        if found == fields and config.retry_failed and results.attrs["num_failed"]:
            raise UsageError(
                f"{output} is finished and its journals are gone, so --retry-failed has nothing to "
                "start from; --overwrite computes all rows again"
            )
        if found == fields:
            return AlreadyComplete(output, results.num_rows, int(results.attrs["num_failed"]))
    lines = "\n".join(differences(found, fields))
    raise UsageError(
        f"{output} holds other results; choose another -o, or give --overwrite:\n{lines}"
    )
