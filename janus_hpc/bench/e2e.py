"""Decode speed of the whole engine on made-up rows, and of transformers beside it in the same run.

Collective over the world: every rank takes its part; rank 0 also times the peer while the others wait.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from janus_hpc.bench.memory_rows import MemoryRows
from janus_hpc.bench.peer import EXPERT_KINDS, TransformersPeer
from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig
from janus_hpc.engine.device import choose_device_kind, room_bytes
from janus_hpc.engine.parts import Part, RunHooks, load_part
from janus_hpc.engine.placing import choose_placement
from janus_hpc.engine.prepare import choose_split
from janus_hpc.engine.setup import EngineSetup, make_setup
from janus_hpc.launch import LaunchEnv
from janus_hpc.layers.source import Reader
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.topology import assign_roles
from janus_hpc.weights.checkpoint import Checkpoint
from janus_hpc.weights.random import RandomWeights


@dataclass(frozen=True, kw_only=True)
class E2eOptions:
    """What to measure. Exactly one of `config_values` (a shape) and `model_dir` gives the model."""

    config_values: dict[str, Any]
    model_dir: Path | None
    batches: Sequence[int]
    splits: Sequence[str]
    num_prompt_tokens: int
    num_new_tokens: int
    repeats: int
    peer: bool
    run: RunConfig


def run_e2e(world: World, env: LaunchEnv, options: E2eOptions) -> list[dict[str, Any]]:
    """One record a split and batch size, on rank 0; empty elsewhere. Collective over the world."""
    peer = _peer_speeds(world, options) if options.peer else {}
    records = []
    for split in options.splits:
        part, _, facts = load_split(world, env, options, split)
        for batch in options.batches:
            times = time_batch(world, part, options, batch)
            record = facts | {"batch": batch} | _speeds(batch, options.num_new_tokens, times)
            if batch in peer:
                record["transformers"] = peer[batch]
                best = max(kind["decode_tokens_per_s"] for kind in peer[batch].values())
                record["ratio_to_best"] = record["decode_tokens_per_s"] / best
            records.append(record)
        if part.joined.exchange is not None:
            part.joined.exchange.free()
    return records if world.world_rank == 0 else []


def load_split(
    world: World, env: LaunchEnv, options: E2eOptions, split_text: str
) -> tuple[Part, EngineSetup, dict[str, Any]]:
    """A rank's part under a split, what it was built from, and what its records share. Collective over the world."""
    spec = spec_of(ConfigFile(options.model_dir or Path("shape"), options.config_values))
    split, _ = choose_split(split_text, spec, world.world_size)
    topology = world.topology(assign_roles(split, list(world.node_ids)))
    device_kind = choose_device_kind(options.run.device)
    dtype = spec.stored_dtype if options.run.dtype == "auto" else options.run.dtype
    reader: Reader = RandomWeights(0, getattr(torch, dtype))
    if options.model_dir is not None:
        reader = Checkpoint(options.model_dir)
    room = min(world.allgather(room_bytes(device_kind, world.local_rank, world.num_local)))
    expert_nodes = [world.node_ids[its] for its in topology.expert_ranks]
    itemsize = getattr(torch, dtype).itemsize
    placement, _ = choose_placement(options.run, spec, expert_nodes, room, itemsize)
    setup = make_setup(
        world=world,
        env=env,
        topology=topology,
        spec=spec,
        reader=reader,
        device_kind=device_kind,
        dtype=dtype,
        max_context=options.num_prompt_tokens + options.num_new_tokens,
        config=options.run,
        placement=placement,
    )
    part = load_part(setup)
    facts = {
        "split": str(split),
        "ranks": world.world_size,
        "kernels": setup.ops.name,
        "device": str(setup.device),
        "dtype": dtype,
        "slots": placement.num_slots,
        "placement": placement.kind,
        "balance": options.run.balance,
        **part.joined.facts(),
    }
    return part, setup, facts


def time_batch(world: World, part: Part, options: E2eOptions, batch: int) -> dict[int, list[float]]:
    """Number of new tokens -> wall times of whole runs; the first, untimed run warms up."""
    times: dict[int, list[float]] = {1: [], options.num_new_tokens: []}
    _one_run(world, part, options, batch, 2)
    for _ in range(options.repeats):
        for num_new, seconds in times.items():
            seconds.append(_one_run(world, part, options, batch, num_new))
    return times


def _one_run(world: World, part: Part, options: E2eOptions, batch: int, num_new: int) -> float:
    vocab = int(options.config_values["vocab_size"])
    rows = MemoryRows(vocab, options.num_prompt_tokens, num_new)
    hooks = RunHooks(
        make_rows=lambda capacity_tokens: rows,
        record=lambda result: None,
        stop_asked=lambda: False,
        on_step=lambda headers: None,
    )
    world.barrier()
    started_s = time.perf_counter()
    part.run(np.arange(batch), hooks)
    world.barrier()
    return time.perf_counter() - started_s


def _speeds(batch: int, num_new: int, times: dict[int, list[float]]) -> dict[str, float]:
    """Decode speed from the difference between long and one-token runs, so that prefill drops out."""
    whole_s, first_s = statistics.median(times[num_new]), statistics.median(times[1])
    return {
        "decode_tokens_per_s": batch * (num_new - 1) / (whole_s - first_s),
        "total_tokens_per_s": batch * num_new / whole_s,
        "prefill_s": first_s,
    }


def _peer_speeds(world: World, options: E2eOptions) -> dict[int, dict[str, dict[str, float]]]:
    """Batch -> kind of experts -> speeds, with all the node's cores as threads; other ranks wait."""
    speeds: dict[int, dict[str, dict[str, float]]] = {}
    if world.world_rank == 0:
        peer = TransformersPeer(options.config_values, options.run.dtype, world.num_cores)
        rows = MemoryRows(int(options.config_values["vocab_size"]), options.num_prompt_tokens, 1)
        for batch in options.batches:
            prompts = [rows.prompt(index) for index in range(batch)]
            speeds[batch] = {
                kind: _peer_kind(peer, prompts, options, kind) for kind in EXPERT_KINDS
            }
    world.barrier()
    return speeds


def _peer_kind(
    peer: TransformersPeer, prompts: list[list[int]], options: E2eOptions, kind: str
) -> dict[str, float]:
    peer.seconds(prompts, 2, kind)
    times = {
        num_new: [peer.seconds(prompts, num_new, kind) for _ in range(options.repeats)]
        for num_new in (1, options.num_new_tokens)
    }
    return _speeds(len(prompts), options.num_new_tokens, times)
