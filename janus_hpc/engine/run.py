"""The life of a run on one rank, from the plan to the results file. Collective over the world."""

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

from janus_hpc.comm.guard import LEAVE_LIMIT_S
from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig
from janus_hpc.engine.answer import answer
from janus_hpc.engine.border import Border
from janus_hpc.engine.deciders import Decider, make_decider
from janus_hpc.engine.device import agree_on_device, room_bytes
from janus_hpc.engine.ending import Horizon, horizons
from janus_hpc.engine.finish import finish_run, remove_run_dir
from janus_hpc.engine.observe import Observation
from janus_hpc.engine.parts import Kept, Part, load_part
from janus_hpc.engine.plan import Allocation, RunPlan
from janus_hpc.engine.planned_split import make_planner, plan_first
from janus_hpc.engine.prepare import AlreadyComplete, prepare
from janus_hpc.engine.progress import Progress, progress_path
from janus_hpc.engine.replanning import Replanning
from janus_hpc.engine.run_profile import find_profile
from janus_hpc.engine.setup import EngineSetup, make_setup
from janus_hpc.engine.signals import StopFlag
from janus_hpc.errors import ExitCode, JanusError
from janus_hpc.kernels.native.balance_library import open_balance_library
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.launch import LaunchEnv
from janus_hpc.log import relabel
from janus_hpc.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def infer(world: World, env: LaunchEnv, config: RunConfig) -> ExitCode:
    """Answer every row of the prompts file. Collective over the world; returns the same on every rank.

    Errors: UsageError on every rank alike before any work; others end the job through the caller's guard.
    """
    with (
        ExitStack() as held,
        StopFlag(lambda: world.abort(int(ExitCode.INTERRUPTED))).installed() as stop,
    ):
        plan = _agree_on_plan(world, env, config, held)
        if isinstance(plan, AlreadyComplete):
            if world.world_rank == 0:
                log.info("%s is complete already: %d rows", plan.output, plan.num_rows)
            return ExitCode.ROWS_FAILED if plan.num_failed else ExitCode.OK
        until = horizons(plan.job_left_s, config.drain_s)
        with Observation(world, env, plan) as observation:
            code = _run(world, env, plan, stop, until, observation)
        # Nobody writes into the run folder any more.
        world.barrier(timeout_s=LEAVE_LIMIT_S)
        if code != ExitCode.INTERRUPTED and world.world_rank == 0:
            remove_run_dir(plan)
        return code


def _agree_on_plan(
    world: World, env: LaunchEnv, config: RunConfig, held: ExitStack
) -> RunPlan | AlreadyComplete:
    """Rank 0 prepares, everybody receives; an error on rank 0 is everybody's."""
    plan: RunPlan | AlreadyComplete | None = None
    error: Exception | None = None
    allocation = _allocation(world, config)
    profile = find_profile(world, env, config, allocation)
    if world.world_rank == 0:
        try:
            plan = prepare(config, env, allocation, held)
            if profile is not None and isinstance(plan, RunPlan):
                library, _ = open_balance_library(env.cache_dir)
                plan = plan_first(plan, allocation, profile, library)
        except JanusError as problem:
            error = problem
            if isinstance(plan, RunPlan) and plan.launch == 0:
                # Nothing was begun: a refusal leaves no folder behind.
                shutil.rmtree(plan.run_dir, ignore_errors=True)
    world.agree(error)
    received: RunPlan | AlreadyComplete = world.bcast(plan)
    return received


def _allocation(world: World, config: RunConfig) -> Allocation:
    """What all ranks have."""
    device = agree_on_device(world, config.device)
    mine = room_bytes(device, world.local_rank, world.num_local)
    return Allocation(
        node_ids=world.node_ids,
        hosts=world.hosts,
        device=device,
        room_bytes=min(world.allgather(mine)),
        num_cores=world.num_cores,
    )


def _run(
    world: World,
    env: LaunchEnv,
    plan: RunPlan,
    stop: StopFlag,
    until: tuple[Horizon, Horizon],
    observation: Observation,
) -> ExitCode:
    """The exit code. `until`: horizons of answering and of merging."""
    config = plan.config
    horizon, merge_horizon = until
    topology = world.topology(plan.roles)
    relabel(world.label)
    if world.world_rank == 0:
        log.info(
            "split %s (%s), dtype %s on %s", plan.split, plan.split_why, plan.dtype, plan.device
        )
        log.info("model %s, results %s", plan.model_dir, plan.output)
        if plan.config.replan != "off" and not plan.config.batch_rows:
            log.warning("--replan without --batch-rows: one batch, so the split never changes")
        if plan.num_resumed or plan.in_flight:
            log.info(
                "resuming: %d of %d rows are done, %d go on from the tokens they have",
                plan.num_resumed,
                plan.num_own_rows,
                len(plan.in_flight),
            )
    with Checkpoint(plan.model_dir) as checkpoint:
        setup = make_setup(
            world=world,
            env=env,
            topology=topology,
            spec=plan.spec,
            reader=checkpoint,
            device_kind=plan.device,
            dtype=plan.dtype,
            max_context=plan.max_context,
            config=config,
            placement=plan.placement,
        )
        kept = Kept.nothing(setup)
        world.pulse.beat("loading weights")
        with world.pulse.spans.span("load and join"):
            part = load_part(setup, kept)
        world.barrier()
        if world.world_rank == 0:
            _say_what_was_chosen(plan, setup, part)
        progress = _progress(plan) if world.world_rank == 0 else None
        facts = part.joined.facts()
        border = Border(setup, part, kept, plan.assignment, plan.first, _decider(plan, setup))
        del part
        observation.start_energy(setup.device)
        answered = answer(plan, border, stop, horizon, progress)
    facts["energy"] = observation.energy(answered.num_tokens)
    world.pulse.beat("merging" if not answered.stopped else "stopping")
    code = finish_run(world, env, plan, setup, facts, answered, merge_horizon)
    observation.finish()
    if progress is not None and code != ExitCode.INTERRUPTED:
        progress.complete()
    return code


def _decider(plan: RunPlan, setup: EngineSetup) -> Decider:
    library = setup.ops.balance_library if isinstance(setup.ops, NativeOps) else None
    node_ids, itemsize = setup.world.node_ids, setup.dtype.itemsize
    decider = make_decider(plan, node_ids, itemsize, library)
    if plan.profile is None or setup.world.world_rank:
        return decider
    planner = make_planner(plan, node_ids, library)
    return Replanning(plan, planner, decider, node_ids, itemsize, library)


def _say_what_was_chosen(plan: RunPlan, setup: EngineSetup, part: Part) -> None:
    joined, placement = part.joined, plan.placement
    if joined.exchange is not None:
        log.info("exchange: %s (%s)", joined.kind, joined.exchange.why)
        log.info("gate: %s", joined.exchange.gate)
        tokens, seconds = joined.crossing.num_tokens, joined.measured_s
        log.info("a round with %d tokens a rank takes %.3g ms", tokens, seconds * 1e3)
    log.info("slots per expert rank: %d a layer (%s)", placement.num_slots, plan.slots_why)
    log.info("placement: %s (%s)", placement.kind, placement.why)
    log.info("balance: %s", plan.config.balance)
    chosen = joined.microbatches
    log.info("microbatches: %d (%s)", chosen.num, chosen.why)
    if chosen.num_threads != setup.num_threads:
        log.info("threads per rank: %d (%s)", chosen.num_threads, chosen.threads_why)


def _progress(plan: RunPlan) -> Progress:
    metrics = None if plan.config.metrics is None else Path(plan.config.metrics)
    return Progress(
        progress_path(plan.output), plan.num_own_rows, plan.num_resumed, plan.num_failed, metrics
    )
