"""What a run tells of itself beside its results, on one rank: log file, heartbeats, timeline, energy.

Starts and ends them in the right order; none of them takes part in what is computed.
"""

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from janus_hpc.comm.guard import end_from_thread
from janus_hpc.comm.world import World
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.timeline import Clocks, max_spans, write_timeline
from janus_hpc.engine.watchdog import Watchdog
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.log import setup_logging
from janus_hpc.watch.energy import Energy, EnergyMeter, nvml_meter, rapl_meter
from janus_hpc.watch.spans import Spans

log = logging.getLogger(__name__)


def log_file(output: Path, world_rank: int) -> Path:
    """The log of one rank of the run that writes `output`; later launches append."""
    return output.with_name(f"{output.name}.logs") / f"rank-{world_rank:05d}.log"


class Observation:
    """Entered from the first weights to the merged results. Entering and `finish` are collective over the world."""

    def __init__(self, world: World, env: LaunchEnv, plan: RunPlan) -> None:
        self._world = world
        self._plan = plan
        self._meters: list[EnergyMeter] = []
        self._spans = _spans(world, env, plan)
        self._clocks: Clocks | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        world, plan = self._world, self._plan
        end = partial(end_from_thread, world)
        self._stack.enter_context(
            Watchdog(
                world,
                plan.run_dir,
                plan.launch,
                plan.config.stall_s,
                end=end,
                on_beat=self._poll,
            )
        )
        start_log(world, plan)
        if plan.config.trace is not None:
            self._clocks = Clocks(world)
        if self._spans is not None:
            world.pulse.spans = self._spans
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_energy(self, device: torch.device) -> None:
        """Count from here on. One rank of a node answers for its processors, one for each GPU. Collective over
        the world.
        """
        world = self._world
        mine = "" if device.type != "cuda" else str(torch.cuda.get_device_properties(device).uuid)
        uuids = world.allgather((world.node_id, mine))
        meters = [rapl_meter()] if world.local_rank == 0 else []
        if mine and uuids.index((world.node_id, mine)) == world.world_rank:
            meters.append(nvml_meter(mine))
        self._meters = meters

    def energy(self, num_tokens: int) -> dict[str, Any] | None:
        """For the results file, on world rank 0. Collective over the world."""
        gathered = self._world.gather([meter.read() for meter in self._meters])
        if gathered is None:
            return None
        total = Energy.total([part for parts in gathered for part in parts])
        if total.joules is None:
            return {"joules": None, "why": total.why}
        each = total.joules / num_tokens if num_tokens else None
        return {
            "joules": total.joules,
            "tokens": num_tokens,
            "joules_per_token": each,
            "sources": total.sources,
        }

    def finish(self) -> None:
        """Write the timeline, if one was asked for. Collective over the world."""
        trace, spans, clocks = self._plan.config.trace, self._spans, self._clocks
        if trace is not None and spans is not None and clocks is not None:
            write_timeline(self._world, spans, clocks, self._plan.run_dir, Path(trace))

    def _poll(self) -> None:
        for meter in self._meters:
            meter.poll()


def start_log(world: World, plan: RunPlan) -> None:
    """From now on this rank's log goes to its file as well. Collective over the world; UsageError on every rank
    where it cannot be written.
    """
    path = log_file(plan.output, world.world_rank)
    error: UsageError | None = None
    try:
        setup_logging(
            world.label, console=world.world_rank == 0, level=plan.config.log_level, file=path
        )
    except OSError as problem:
        error = UsageError(f"{path}: cannot be written: {problem.strerror}")
    world.agree(error)
    log.debug("launch %d of %s", plan.launch, plan.output)


def _spans(world: World, env: LaunchEnv, plan: RunPlan) -> Spans | None:
    """Spans where a timeline is asked for, or a profiler shows ranges of the GPU's."""
    ranges = torch.cuda.nvtx if plan.device == "cuda" and env.is_profiled else None
    if plan.config.trace is None and ranges is None:
        return None
    most = 0 if plan.config.trace is None else max_spans(world.world_size)
    return Spans(most, ranges)
