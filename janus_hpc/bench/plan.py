"""Predicted against measured time of decode steps, over splits and batch sizes, with made-up rows.

Collective over the world. The prediction is the planner's from a profile; nothing here is fitted.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from janus_hpc.bench.e2e import E2eOptions, load_split, time_batch
from janus_hpc.comm.world import World
from janus_hpc.engine.parts import Part
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.launch import LaunchEnv
from janus_hpc.planner.a_max_lookup import AMaxLookup, Routing
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.replan import Choice, Replanner
from janus_hpc.planner.system import Context, System

PARTS = ("tpot", "attention", "moe", "comm")


def run_plan(
    world: World, env: LaunchEnv, options: E2eOptions, profile: Profile, routing: Routing
) -> list[dict[str, Any]]:
    """One record a split and batch size, then a summary, on rank 0; empty elsewhere. Collective."""
    records = []
    for split in options.splits:
        part, setup, _ = load_split(world, env, options, split)
        planner = _planner(setup, profile, routing)
        for batch in options.batches:
            measured_s = _tpot_s(options.num_new_tokens, time_batch(world, part, options, batch))
            records.append(_record(planner, part, setup, options, batch, measured_s))
        if part.joined.exchange is not None:
            part.joined.exchange.free()
    return [*records, _summary(records)] if world.world_rank == 0 else []


def _planner(setup: EngineSetup, profile: Profile, routing: Routing) -> Replanner:
    world, ops = setup.world, setup.ops
    library = ops.balance_library if isinstance(ops, NativeOps) else None
    return Replanner(
        system=System(
            attention=profile,
            experts=profile,
            a_max=AMaxLookup(routing, policy=setup.config.balance, library=library),
            context=Context(mean=0.0),
            ranks_per_node=max(world.node_ids.count(node) for node in world.node_ids),
        ),
        world_size=world.world_size,
    )


def _tpot_s(num_new_tokens: int, times: dict[int, list[float]]) -> float:
    """From the difference between long and one-token runs, so that prefill drops out."""
    long_s, first_s = statistics.median(times[num_new_tokens]), statistics.median(times[1])
    return (long_s - first_s) / (num_new_tokens - 1)


def _record(
    planner: Replanner,
    part: Part,
    setup: EngineSetup,
    options: E2eOptions,
    batch: int,
    measured_s: float,
) -> dict[str, Any]:
    topology = setup.topology
    choice = Choice(
        num_attention=len(topology.attention_ranks),
        num_expert=len(topology.expert_ranks),
        num_slots=setup.placement.num_slots,
        colocated=topology.attention_ranks == topology.expert_ranks,
        microbatches=part.joined.microbatches.num,
    )
    context = options.num_prompt_tokens + options.num_new_tokens / 2
    told = planner.predict(choice, batch, context)
    return {
        "split": str(choice.split(topology.world_size)),
        "slots": choice.num_slots,
        "microbatches": choice.microbatches,
        "batch": batch,
        "context": context,
        "measured_tpot_s": measured_s,
        **{f"predicted_{name}_s": getattr(told, f"{name}_s") for name in PARTS},
        "error": told.tpot_s / measured_s - 1,
    }


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean absolute error, and for each batch size how much slower the split with the smallest predicted
    time is than the fastest one.
    """
    lost = {}
    for batch in sorted({its["batch"] for its in records}):
        cells = [its for its in records if its["batch"] == batch]
        told = min(cells, key=lambda its: its["predicted_tpot_s"])
        best = min(cells, key=lambda its: its["measured_tpot_s"])
        lost[str(batch)] = {
            "chosen": told["split"],
            "best": best["split"],
            "slower_by": told["measured_tpot_s"] / best["measured_tpot_s"] - 1,
        }
    errors = [abs(its["error"]) for its in records]
    return {
        "num_cells": len(records),
        "mean_absolute_error": statistics.mean(errors),
        "largest_absolute_error": max(errors),
        "choices": lost,
    }
