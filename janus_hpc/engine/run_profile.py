"""The profile that a run plans by: a file's, a shipped one's, or measured now on these ranks.

Knows where profiles come from; what is planned from them is `planned_split`'s and `replanning`'s.
"""

import logging
from pathlib import Path

from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig, is_name
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.measure.effort import QUICK
from janus_hpc.engine.measure.measure import measure_profile
from janus_hpc.engine.plan import Allocation, RunProfile
from janus_hpc.engine.prepare import paths, run_dtype
from janus_hpc.errors import JanusError, UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.registry import ignored_tensors, load_spec
from janus_hpc.models.spec import DTYPE_BYTES, ModelSpec
from janus_hpc.planner.hardware import profile_for
from janus_hpc.planner.profile_data import shape_of
from janus_hpc.planner.profile_file import check_hardware, check_model, read_profile
from janus_hpc.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def find_profile(
    world: World, env: LaunchEnv, config: RunConfig, allocation: Allocation
) -> RunProfile | None:
    """The same on every rank; None where nothing is planned by one. Collective over the world.

    With `--replan auto` and no `--profile` it measures for some seconds, unless the results are there.
    Errors: UsageError on every rank for a profile of another model or other hardware.
    """
    is_complete = world.bcast(paths(config)[1].exists()) and not config.overwrite
    if is_complete or (config.profile is None and config.replan != "auto"):
        return None
    error: JanusError | None = None
    found: tuple[ModelSpec, RunProfile | None] | None = None
    if world.world_rank == 0:
        try:
            spec = _spec(config)
            found = spec, _given(config, spec, allocation)
        except JanusError as problem:
            error = problem
    world.agree(error)
    spec, given = world.bcast(found)
    return given if given is not None else _measured(world, env, config, spec, allocation)


def _spec(config: RunConfig) -> ModelSpec:
    """What measuring would be wasted on is refused before."""
    if not Path(config.prompts).is_file():
        raise UsageError(f"prompts file {config.prompts} does not exist or is not a file")
    model_dir = _model_dir(config)
    spec = load_spec(model_dir)
    run_dtype(config, spec, model_dir)
    with Checkpoint(model_dir) as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
    return spec


def _given(config: RunConfig, spec: ModelSpec, allocation: Allocation) -> RunProfile | None:
    if config.profile is None:
        return None
    dtype = run_dtype(config, spec, _model_dir(config))
    itemsize, name = DTYPE_BYTES[dtype], str(_model_dir(config))
    path = Path(config.profile)
    if is_name(config.profile):
        profile = profile_for(config.profile, spec, dtype, itemsize, name)
        check_hardware(profile, config.profile, allocation.device, allocation.num_cores)
        return RunProfile(profile, f"shipped for {profile.hardware.name}, {profile.basis}")
    profile = read_profile(path)
    check_model(profile, path, shape_of(spec, dtype, itemsize, name))
    check_hardware(profile, path, allocation.device, allocation.num_cores)
    return RunProfile(profile, f"{path}, {profile.basis}")


def _measured(
    world: World, env: LaunchEnv, config: RunConfig, spec: ModelSpec, allocation: Allocation
) -> RunProfile:
    if world.world_rank == 0:
        log.info("--replan auto without --profile: measuring these ranks for some seconds")
    profile = measure_profile(
        world,
        env,
        spec,
        name=str(_model_dir(config)),
        dtype=run_dtype(config, spec, _model_dir(config)),
        device_kind=allocation.device,
        effort=QUICK,
        timeout_s=config.comm_timeout_s,
        max_context=config.max_context,
        model_dir=_model_dir(config),
    )
    return RunProfile(profile, "measured at the start of this run")


def _model_dir(config: RunConfig) -> Path:
    return Path(config.model) if config.model else demo_model_dir()
