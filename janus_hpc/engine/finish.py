"""After the last step: statistics to rank 0, journals into the results file, and how the run ended."""

import logging
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import janus_hpc
from janus_hpc.comm.world import World
from janus_hpc.engine.parts import Part
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.tallies import Tallies
from janus_hpc.errors import ExitCode, JanusError
from janus_hpc.experts.activity import ExpertActivity, over_ranks
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.manifest import load_manifest
from janus_hpc.results.merge import MergeReport, merge
from janus_hpc.results.stats import BatchStats, LayerStats, RunStats
from janus_hpc.rows.index import InputIndex

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "h5py", "mpi4py", "msgspec", "safetensors", "tokenizers", "jinja2")


def finish_run(
    world: World,
    env: LaunchEnv,
    plan: RunPlan,
    setup: EngineSetup,
    part: Part,
    seconds: float,
    stopped: bool,
) -> ExitCode:
    """Merge on rank 0 and return the exit code on every rank. Collective over the world.

    Errors: JournalError or JanusError from rank 0 on every rank; the journals stay for another try.
    """
    collected = world.gather((part.tallies, part.activity))
    stopped = any(world.allgather(stopped))
    if stopped:
        if world.world_rank == 0:
            log.warning("stopped by a signal; the same command resumes from %s", plan.run_dir)
        return ExitCode.INTERRUPTED
    error: Exception | None = None
    code = ExitCode.OK
    if collected is not None:
        try:
            code = _merge(world, env, plan, setup, part, collected, seconds)
        except JanusError as problem:
            error = problem
        except Exception as problem:  # every rank must learn of it
            log.exception("writing %s failed", plan.output)
            error = problem
    world.agree(error)
    agreed: ExitCode = world.bcast(code)
    return agreed


def _merge(
    world: World,
    env: LaunchEnv,
    plan: RunPlan,
    setup: EngineSetup,
    part: Part,
    collected: list[tuple[Tallies, ExpertActivity | None]],
    seconds: float,
) -> ExitCode:
    tallies = [its for its, _ in collected]
    activity = over_ranks([its for _, its in collected if its is not None])
    manifest = load_manifest(plan.run_dir)
    stats = RunStats(
        batches=[_batch_stats(plan, part, tallies, seconds)],
        layers=None if activity is None else _layer_stats(activity),
        launches=[] if manifest is None else manifest.launches,
    )
    started_s = time.monotonic()
    report = merge(
        plan.run_dir,
        plan.output,
        plan.num_rows,
        plan.fingerprint,
        _provenance(world, env, plan, setup, part),
        stats=stats,
        chat=InputIndex.open(plan.index_path).chat,
    )
    _report(plan, report, tallies, seconds, time.monotonic() - started_s)
    try:
        shutil.rmtree(plan.run_dir)
    except OSError as error:
        log.warning("the results are complete; could not remove %s: %s", plan.run_dir, error)
    return ExitCode.ROWS_FAILED if report.num_failed else ExitCode.OK


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


def _batch_stats(plan: RunPlan, part: Part, tallies: list[Tallies], seconds: float) -> BatchStats:
    tokens = sum(its.tokens_generated for its in tallies)
    steps = sum(its.num_decode_steps for its in tallies)
    decode_s = sum(its.decode_s for its in tallies)
    return BatchStats(
        plan=plan.split_why,
        split=str(plan.split),
        exchange=part.joined.kind,
        num_rows=plan.num_rows - plan.num_resumed,
        num_tokens=tokens,
        seconds=seconds,
        tpot_s=decode_s / steps if steps else float("nan"),
    )


def _layer_stats(activity: ExpertActivity) -> LayerStats:
    return LayerStats(
        expert_activations=activity.tokens_LE,
        a_max_mean=activity.a_max_mean(),
        a_max_max=activity.a_max_max_L,
        num_steps=int(np.max(activity.num_passes_L, initial=0)),
    )


def _provenance(
    world: World, env: LaunchEnv, plan: RunPlan, setup: EngineSetup, part: Part
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
        **part.joined.facts(),
        "kernels": setup.kernels,
        "kernels_why": setup.kernels_why,
        "device": str(setup.device),
        "kv_bytes": setup.kv_bytes,
    }
