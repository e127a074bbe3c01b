"""From the plan to this rank's part of the model: which weights it reads, and into whose memory.

What several ranks of a node need (attention weights, gates) is read once a node into shared memory. Branches
on nothing: the caller says which part it wants.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.experts.gate import Gate
from janus_hpc.kernels.ops import Ops
from janus_hpc.layers.source import Reader, SizingSource, SlabSource, WeightSource
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.models.spec import ModelSpec

M = TypeVar("M")


def build_attention(
    spec: ModelSpec,
    ops: Ops,
    reader: Reader,
    shared: NodeShared,
    dtype: torch.dtype,
    device: torch.device,
    max_context: int,
) -> AttentionModel:
    """The attention side's weights. Collective over the ranks of `shared`."""
    model = _shared_build(
        lambda source: AttentionModel(spec, ops, source, dtype), ops, reader, shared, dtype, device
    )
    model.prepare(device, max_context)
    return model


def build_gate(
    spec: ModelSpec, ops: Ops, reader: Reader, shared: NodeShared, device: torch.device
) -> Gate:
    """The gates, for either side. Collective over the ranks of `shared`."""
    # Routers decide: they are kept in float32 whatever the model's dtype.
    make = partial(Gate, spec, ops)
    return _shared_build(make, ops, reader, shared, torch.float32, device)


def _shared_build(
    make: Callable[[WeightSource], M],
    ops: Ops,
    reader: Reader,
    shared: NodeShared,
    dtype: torch.dtype,
    device: torch.device,
) -> M:
    """Size, allocate, fill on the leader, map on the others."""
    sizing = SizingSource(ops, dtype)
    make(sizing)
    if device.type == "cpu":
        slab_bytes = shared.allocate(sizing.num_bytes)
        filled = make(SlabSource(ops, dtype, slab_bytes, reader)) if shared.is_leader else None
        shared.fence()
        # The others construct only now: a layer may copy what it is handed.
        return filled if filled is not None else make(SlabSource(ops, dtype, slab_bytes, None))
    # Each GPU needs its own copy; the node's leader still reads the files, the others copy from it.
    staging = shared.allocate(sizing.num_bytes)
    if shared.is_leader:
        make(SlabSource(ops, dtype, staging, reader))
    shared.fence()
    return make(SlabSource(ops, dtype, staging.to(device), None))
