"""What observing a run costs: the same rows with and without journal, watchdog, trace sampling and metrics, in pairs.

Collective over the world; a run's own parts do the work and the observing.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from janus_hpc.bench.e2e import E2eOptions, load_split
from janus_hpc.bench.memory_rows import MemoryRows
from janus_hpc.comm.exchange import StepHeader
from janus_hpc.comm.world import World
from janus_hpc.core import RowResult
from janus_hpc.engine.parts import Part, RunHooks
from janus_hpc.engine.progress import Progress
from janus_hpc.engine.timeline import max_spans
from janus_hpc.engine.watchdog import Watchdog
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.journal import JournalWriter
from janus_hpc.watch.spans import NoSpans, Spans

# What a run has switched on, and what its users can switch on besides.
ARMS = ("off", "on", "on and timeline")
STALL_S = 300.0


@dataclass(frozen=True, kw_only=True)
class OverheadOptions:
    """`folder`: where journals and heartbeats go, on the file system that results would go to."""

    e2e: E2eOptions
    split: str
    num_rows: int
    num_pairs: int
    folder: Path


@dataclass(kw_only=True)
class _Bed:
    """One rank's surroundings for all runs; `launch` numbers them."""

    world: World
    part: Part
    options: OverheadOptions
    samplers: list[Any] = field(default_factory=list)
    launch: int = 0


def run_overhead(world: World, env: LaunchEnv, options: OverheadOptions) -> list[dict[str, Any]]:
    """One record on rank 0: seconds of every run, and the median over pairs of the time with over that without.

    Collective over the world.
    """
    part, _, facts = load_split(world, env, options.e2e, options.split)
    bed = _Bed(world=world, part=part, options=options)
    sides = (part.loaded.experts, part.loaded.gate)
    bed.samplers = [side.sampler for side in sides if side is not None]
    times_s: dict[str, list[float]] = {arm: [] for arm in ARMS}
    _one_run(bed, "on")
    for pair in range(options.num_pairs):
        # The order turns, so that a machine that gets slower or faster disturbs all alike.
        for shift in range(len(ARMS)):
            arm = ARMS[(pair + shift) % len(ARMS)]
            times_s[arm].append(_one_run(bed, arm))
    if part.joined.exchange is not None:
        part.joined.exchange.free()
    if world.world_rank:
        return []
    return [facts | {"rows": options.num_rows, "seconds": times_s} | _overheads(times_s)]


def _overheads(times_s: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in ARMS[1:]:
        ratios = [a / b for a, b in zip(times_s[arm], times_s["off"], strict=True)]
        name = arm.replace(" ", "_")
        found[f"overhead_{name}"] = statistics.median(ratios) - 1
        found[f"overhead_{name}_quartiles"] = [its - 1 for its in statistics.quantiles(ratios)]
    return found


def _one_run(bed: _Bed, arm: str) -> float:
    e2e, world = bed.options.e2e, bed.world
    vocab = int(e2e.config_values["vocab_size"])
    rows = MemoryRows(vocab, e2e.num_prompt_tokens, e2e.num_new_tokens)
    hooks = RunHooks(
        make_rows=lambda capacity_tokens: rows,
        record=lambda result: None,
        stop_asked=lambda: False,
        on_step=lambda headers: None,
    )
    bed.launch += 1
    _sample(bed, arm != "off")
    with ExitStack() as stack:
        if arm != "off":
            hooks = stack.enter_context(_observed(bed, hooks))
        if arm == "on and timeline":
            world.pulse.spans = Spans(max_spans(world.world_size))
        world.barrier()
        started_s = time.perf_counter()
        with world.pulse.steps():
            bed.part.run(np.arange(bed.options.num_rows), hooks)
        world.barrier()
        seconds = time.perf_counter() - started_s
    world.pulse.spans = NoSpans()
    return seconds


def _sample(bed: _Bed, on: bool) -> None:
    """Whether routing is sampled."""
    sides = (bed.part.loaded.experts, bed.part.loaded.gate)
    there = [side for side in sides if side is not None]
    for side, sampler in zip(there, bed.samplers, strict=True):
        side.sampler = sampler if on else None
        if sampler is not None:
            sampler.clear()


@contextmanager
def _observed(bed: _Bed, hooks: RunHooks) -> Iterator[RunHooks]:
    """The hooks of a run that is observed, as `engine.answer` has them."""
    world, folder = bed.world, bed.options.folder
    with ExitStack() as stack:
        never = partial(_unexpected, world)
        dog = Watchdog(world, folder, bed.launch, STALL_S, end=never, on_beat=lambda: None)
        stack.enter_context(dog)
        journal: JournalWriter | None = None
        if bed.part.loaded.model is not None:
            journal = JournalWriter(folder, bed.launch, world.world_rank, bytes(32))
            stack.callback(journal.close)
        progress: Progress | None = None
        if world.world_rank == 0:
            out = stack.enter_context(Path("/dev/null").open("w"))
            path, metrics = folder / "progress.json", folder / "metrics.prom"
            progress = Progress(path, bed.options.num_rows, 0, 0, metrics, out)
        yield replace(
            hooks,
            record=_record if journal is None else journal.append,
            on_step=partial(_on_step, bed, journal, progress),
        )


def _on_step(
    bed: _Bed,
    journal: JournalWriter | None,
    progress: Progress | None,
    headers: list[StepHeader],
) -> None:
    if journal is not None:
        with bed.world.pulse.spans.span("journal"):
            journal.maybe_sync(time.monotonic())
    bed.world.pulse.tell(bed.part.tallies.attention_s, bed.part.tallies.experts_s)
    if progress is not None:
        progress.update([h.counters for h in headers])


def _record(result: RowResult) -> None:
    raise AssertionError(f"a rank without a journal finished a row: {result}")


def _unexpected(world: World, text: str, exit_code: int) -> None:
    raise AssertionError(f"{world.label}: {text} ({exit_code})")
