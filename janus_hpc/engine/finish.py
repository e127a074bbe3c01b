"""After the last step: statistics to rank 0, journals into the results file, and how the run ended."""

import logging
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import janus_hpc
from janus_hpc.comm.world import World
from janus_hpc.engine.account import Account
from janus_hpc.engine.answer import Answered
from janus_hpc.engine.ending import Horizon
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.tallies import Tallies
from janus_hpc.errors import ExitCode, JanusError, UsageError, refusal_text
from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.manifest import load_manifest
from janus_hpc.results.merge import MergeReport, merge
from janus_hpc.results.stats import LayerStats, RunStats
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import write_trace
from janus_hpc.rows.index import InputIndex

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "h5py", "mpi4py", "msgspec", "safetensors", "tokenizers", "jinja2")


def finish_run(
    world: World,
    env: LaunchEnv,
    plan: RunPlan,
    setup: EngineSetup,
    joined: dict[str, Any],
    answered: Answered,
    merge_horizon: Horizon,
) -> ExitCode:
    """Merge on rank 0 and return the exit code on every rank. Collective over the world.

    `setup` and `joined` (how ranks joined the exchange) are of the first batch. A merge that is not done when
    `merge_horizon` is over is given up, and the next launch does it.
    Errors: JournalError or JanusError from rank 0 on every rank; the journals stay for another try.
    """
    if answered.stopped:
        if world.world_rank == 0:
            log.warning(
                "stopped (%s); the same command resumes from %s", answered.stopped, plan.run_dir
            )
        return ExitCode.INTERRUPTED
    error: Exception | None = None
    code = ExitCode.OK
    if answered.account is not None:
        try:
            provenance = _provenance(world, env, plan, setup, joined)
            told = partial(_give_up_after, merge_horizon)
            code = _merge(plan, answered.account, answered.seconds, provenance, told)
        except _OutOfTime:
            log.warning("stopped while merging; the same command resumes from %s", plan.run_dir)
            code = ExitCode.INTERRUPTED
        except JanusError as problem:
            error = problem
        except Exception as problem:  # every rank must learn of it
            refusal = refusal_text(problem)
            if refusal is None:
                log.exception("writing %s failed", plan.output)
            error = problem if refusal is None else JanusError(refusal)
    world.agree(error)
    agreed: ExitCode = world.bcast(code)
    return agreed


class _OutOfTime(Exception):
    """The job's end is near, and the results are not merged."""


def _give_up_after(horizon: Horizon, _: str) -> None:
    if horizon.is_over():
        raise _OutOfTime


def remove_run_dir(plan: RunPlan) -> None:
    """The results are complete, and no rank writes into the folder any more. For world rank 0."""
    try:
        shutil.rmtree(plan.run_dir)
    except OSError as error:
        log.warning("the results are complete; could not remove %s: %s", plan.run_dir, error)


def _merge(
    plan: RunPlan,
    account: Account,
    seconds: float,
    provenance: dict[str, Any],
    progress: Callable[[str], None],
) -> ExitCode:
    manifest = load_manifest(plan.run_dir)
    stats = RunStats(
        batches=account.batches,
        layers=None if account.activity is None else _layer_stats(account.activity),
        launches=[] if manifest is None else manifest.launches,
        placements=account.placements,
        routing=account.trace,
    )
    started_s = time.monotonic()
    report = merge(
        plan.run_dir,
        plan.output,
        plan.num_rows,
        plan.fingerprint,
        provenance,
        stats=stats,
        chat=InputIndex.open(plan.index_path).chat,
        progress=progress,
        first_row=plan.first_row,
        stop_row=plan.stop_row,
    )
    _report(plan, report, account.tallies, seconds, time.monotonic() - started_s)
    if plan.config.routing_trace is not None:
        _write_trace(plan, Path(plan.config.routing_trace), account.trace)
    return ExitCode.ROWS_FAILED if report.num_failed else ExitCode.OK


def _write_trace(plan: RunPlan, path: Path, trace: RoutingTrace | None) -> None:
    """The results are complete and hold the trace, too: what fails here is only said."""
    if trace is None:
        log.warning("no routing was recorded, so %s is not written", path)
        return
    model = str(plan.model_dir.resolve())
    try:
        write_trace(path, trace, model=model, created=int(time.time()))
    except UsageError as error:
        log.warning("%s; take it from the results: janus-hpc results export --to trace", error)
        return
    log.info("routing trace: %s", path)


def _report(
    plan: RunPlan, report: MergeReport, tallies: list[Tallies], seconds: float, merge_s: float
) -> None:
    tokens = sum(its.tokens_generated for its in tallies)
    log.info(
        "%d rows (%d failed), %d tokens in %.1f s (%.0f tokens/s), merged in %.1f s: %s",
        report.num_rows,
        report.num_failed,
        tokens,
        seconds,
        tokens / max(seconds, 1e-9),
        merge_s,
        plan.output,
    )


def _layer_stats(activity: ExpertActivity) -> LayerStats:
    return LayerStats(
        expert_activations=activity.tokens_LE.numpy(),
        a_max_mean=activity.a_max_mean().numpy(),
        a_max_max=activity.a_max_max_L.numpy(),
        activated_mean=activity.activated_mean().numpy(),
        num_steps=max(activity.num_passes_L, default=0),
    )


def _provenance(
    world: World, env: LaunchEnv, plan: RunPlan, setup: EngineSetup, joined: dict[str, Any]
) -> dict[str, Any]:
    config = plan.config
    return {
        "janus_version": janus_hpc.__version__,
        "created": int(time.time()),
        "fingerprint": plan.fingerprint_fields,
        "model": str(plan.model_dir.resolve()),
        "architecture": plan.spec.architecture,
        "input": str(Path(config.prompts).resolve()),
        "config": {name: getattr(config, name) for name in config.__struct_fields__},
        "split": str(plan.split),
        "split_why": plan.split_why,
        "roles": [str(role) for role in plan.roles],
        "hosts": list(world.hosts),
        "launcher": env.launcher,
        "slurm": env.slurm,
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "mpi_library": world.library_version,
        **joined,
        "kernels": setup.kernels,
        "kernels_why": setup.kernels_why,
        "slots": plan.placement.num_slots,
        "slots_why": plan.slots_why,
        "placement": plan.placement.kind,
        "placement_why": plan.placement.why,
        "balance": config.balance,
        "profile": _profile_facts(plan),
        "device": str(setup.device),
        "kv_bytes": setup.kv_bytes,
    }


def _profile_facts(plan: RunPlan) -> dict[str, Any] | None:
    """What the run planned by; None where it did not."""
    if plan.profile is None:
        return None
    profile = plan.profile.profile
    return {
        "origin": plan.profile.origin,
        "basis": profile.basis,
        "made": profile.made,
        "hardware": profile.hardware.name,
        "sources": list(profile.sources),
    }
