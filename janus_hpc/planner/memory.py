"""How many bytes a rank of either role needs, and how many sequences fit. Pure.

Weights as the profile's model has them; the cache for the contexts that sequences really have.
"""

import numpy as np

from janus_hpc.planner.system import Floats, Grid, Ints, System

# Legend: X candidates.

# Of sums of contexts, so that the cache of a rank is too small for one step in a hundred.
_DEVIATIONS = 2.33
# Hidden states of a step on their way through a layer: as rows, in float32, in float64, and some to spare.
_ROW_COPIES = 4


def attention_bytes(system: System, grid: Grid) -> Floats:
    """Of an attention rank without its cache. Ranks of a node that share cores share these weights, too."""
    profile = system.attention
    weights = float(profile.model.attention_bytes)
    shared_by = np.ones(len(grid))
    if profile.hardware.cores_per_node:
        # The last node may have fewer.
        rest = grid.num_attention % system.node_size
        few = np.minimum(grid.num_attention, system.node_size)
        shared_by = np.where(rest > 0, rest, few).astype(np.float64)
    own: Floats = weights / shared_by + _buffers(system, system.max_step_tokens)
    return own


def expert_bytes(system: System, grid: Grid, batch: Floats | Ints) -> Floats:
    """Of an expert rank: its slots of all layers, the routers, and a step's tokens."""
    model = system.experts.model
    slots = grid.num_slots * float(model.expert_bytes) * model.num_sparse_layers
    tokens = np.maximum(batch, grid.num_attention * system.max_step_tokens)
    needed: Floats = slots + model.gate_bytes + _buffers(system, tokens)
    return needed


def cache_bytes(system: System, batch_per_rank: Floats | Ints) -> Floats:
    """Of the KV cache of so many sequences."""
    b = np.asarray(batch_per_rank, dtype=np.float64)
    tokens = b * system.context.mean + _DEVIATIONS * system.context.std * np.sqrt(b)
    cached: Floats = tokens * system.attention.model.kv_bytes
    return cached


def largest_batch(system: System, grid: Grid) -> Ints:
    """The most sequences in flight over all attention ranks, 0 where not one fits or the weights do not."""
    most_A = system.attention.hardware.memory_bytes
    taken = attention_bytes(system, grid)
    experts = expert_bytes(system, grid, np.zeros(len(grid)))
    room = most_A - taken - np.where(grid.colocated, experts, 0.0)
    fits = (experts <= system.experts.hardware.memory_bytes) & (room > 0)
    # The cache grows with the batch: by bisection in the one variable that all candidates share.
    low, high = np.zeros(len(grid), np.int64), np.full(len(grid), system.max_sequences, np.int64)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fit = cache_bytes(system, middle) <= room
        low, high = np.where(fit, middle, low), np.where(fit, high, middle - 1)
    per_rank = np.where(fits, low, 0)
    batch: Ints = per_rank * grid.num_attention
    return batch


def _buffers(system: System, num_tokens: Floats | int) -> Floats:
    row = system.attention.model.row_bytes + 8 * system.attention.model.hidden
    needed: Floats = np.asarray(_ROW_COPIES * row * num_tokens, dtype=np.float64)
    return needed
