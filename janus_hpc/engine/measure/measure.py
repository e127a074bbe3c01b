"""From measurements on the ranks of a world to a profile: what is measured in turn, fitted and put together.

The one door of this package.
"""

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from janus_hpc.comm.world import World
from janus_hpc.engine.measure.attention import AttentionTimes, attention_times
from janus_hpc.engine.measure.attention import least as least_attention
from janus_hpc.engine.measure.bed import Bed, make_bed
from janus_hpc.engine.measure.effort import Effort
from janus_hpc.engine.measure.experts import ExpertTimes, expert_times
from janus_hpc.engine.measure.experts import least as least_experts
from janus_hpc.engine.measure.fits import (
    Fitted,
    fit_attention,
    fit_exchange,
    fit_experts,
)
from janus_hpc.engine.measure.loading import checkpoint_rate, link_rate, message_costs
from janus_hpc.engine.measure.rounds import round_times
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.spec import ModelSpec
from janus_hpc.planner.profile_data import Hardware, LoadRates, Profile, shape_of
from janus_hpc.planner.profile_file import FORMAT, VERSION

Attention = dict[int, list[AttentionTimes]]
Experts = dict[int, list[ExpertTimes]]
CPUINFO = Path("/proc/cpuinfo")


def measure_profile(
    world: World,
    env: LaunchEnv,
    spec: ModelSpec,
    *,
    name: str,
    dtype: str,
    device_kind: str,
    effort: Effort,
    timeout_s: float,
    max_context: int = 0,
    model_dir: Path | None = None,
) -> Profile:
    """The same on every rank. Collective over the world.

    `max_context` 0 is the model's; of `model_dir` only the reading speed is taken. Threads, and MPI's waits, are
    left as they come: who computes next sets them. UsageError on all ranks, CommTimeout as for every wait.
    """
    torch_dtype: torch.dtype = getattr(torch, dtype)
    # A sequence must outlast the passes.
    least = effort.passes + 3
    if spec.max_context < least:
        raise UsageError(
            f"{name}: has {spec.max_context} positions, too few to measure: expected {least}"
        )
    bed = make_bed(
        world,
        env,
        spec,
        dtype=torch_dtype,
        device_kind=device_kind,
        effort=effort,
        timeout_s=timeout_s,
        max_context=max(max_context or spec.max_context, least),
    )
    attention, experts = _stage_times(bed)
    rounds, join_s = round_times(bed, timeout_s)
    costs = message_costs(bed, timeout_s)
    rate, rate_source = checkpoint_rate(bed, model_dir)
    fitted = Fitted()
    attention_costs = tuple(fit_attention(its, times, fitted) for its, times in attention.items())
    expert_costs = tuple(fit_experts(its, times, fitted) for its, times in experts.items())
    profile = Profile(
        format=FORMAT,
        version=VERSION,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        basis="measured",
        sources=(*_sources(world), f"{effort.name} effort", rate_source),
        hardware=_hardware(bed),
        model=shape_of(spec, dtype, torch_dtype.itemsize, name),
        kernels=bed.ops.name,
        attention=attention_costs,
        experts=expert_costs,
        exchange=fit_exchange(rounds, attention_costs, expert_costs, costs, fitted),
        loading=LoadRates(checkpoint_rate=rate, link_rate=link_rate(costs), join_s=join_s),
        p99_ratio=_p99_ratio(list(attention.values()), list(experts.values())),
        residuals=fitted.residuals,
        points=tuple(fitted.points),
    )
    bed.free()
    del bed
    if device_kind == "cuda":
        torch.cuda.empty_cache()
    # Clocks and hosts differ: the first rank's word counts.
    agreed: Profile = world.bcast(profile)
    return agreed


def _stage_times(bed: Bed) -> tuple[Attention, Experts]:
    """By number of ranks that compute at once. What disturbs for some seconds hits few of a point's turns.

    Collective over the world.
    """
    attention: dict[int, list[list[AttentionTimes]]] = {its: [] for its in bed.sharing}
    experts: dict[int, list[list[ExpertTimes]]] = {its: [] for its in bed.sharing}
    for _ in range(bed.effort.turns):
        for num_sharing in bed.sharing:
            attention[num_sharing].append(attention_times(bed, num_sharing))
            experts[num_sharing].append(expert_times(bed, num_sharing))
    return (
        {
            its: [least_attention(list(point)) for point in zip(*turns, strict=True)]
            for its, turns in attention.items()
        },
        {
            its: [least_experts(list(point)) for point in zip(*turns, strict=True)]
            for its, turns in experts.items()
        },
    )


def _hardware(bed: Bed) -> Hardware:
    """Names as the system gives them; what ranks share is the smallest node's."""
    world, on_cpu = bed.world, bed.device.type == "cpu"
    return Hardware(
        name=cpu_name() if on_cpu else torch.cuda.get_device_name(bed.device),
        device=bed.device.type,
        memory_bytes=bed.room_bytes,
        ranks_per_node=max(world.local_ranks) + 1,
        cores_per_node=min(world.allgather(world.num_cores)) if on_cpu else 0,
    )


def cpu_name() -> str:
    """As the kernel calls it; "CPU" where it does not say."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


def _sources(world: World) -> list[str]:
    hosts = ", ".join(sorted(set(world.hosts)))
    return [
        f"{world.world_size} ranks on {hosts}",
        world.library_version,
        f"torch {torch.__version__}",
    ]


def _p99_ratio(
    attention: Sequence[Sequence[AttentionTimes]], experts: Sequence[Sequence[ExpertTimes]]
) -> float:
    """Over all points' steps, each as a part of its point's mean."""
    sums = [its.steps_s for points in attention for its in points]
    sums += [its.steps_s for points in experts for its in points]
    ratios = [step_s / statistics.mean(steps_s) for steps_s in sums for step_s in steps_s]
    return max(float(np.percentile(ratios, 99)), 1.0)
