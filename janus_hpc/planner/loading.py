"""How long it takes until every rank has read its weights. Pure."""

import numpy as np

from janus_hpc.planner.system import Floats, Grid, Ints, System


def load_s(system: System, grid: Grid) -> Floats:
    """Of each candidate: bytes of its fullest node over what a node reads a second, and joining the ranks.

    Nodes are filled in turn, attention ranks first; ranks that share cores read attention weights once.
    """
    size = system.node_size
    attending = np.minimum(grid.num_attention, size)
    # Where both roles meet: the last attention node, filled up with expert ranks.
    mixed = np.where(grid.colocated, attending, grid.num_attention % size)
    room = np.where(grid.colocated, size, (size - mixed) % size)
    beside = np.minimum(room, grid.num_expert)
    alone = np.where(grid.colocated, 0, np.minimum(grid.num_expert - beside, size))
    rates = system.attention.loading, system.experts.loading
    seconds: Floats = np.maximum.reduce(
        [
            _attention_bytes(system, attending) / rates[0].checkpoint_rate,
            _attention_bytes(system, mixed) / rates[0].checkpoint_rate
            + _expert_bytes(system, grid, beside) / rates[1].checkpoint_rate,
            _expert_bytes(system, grid, alone) / rates[1].checkpoint_rate,
        ]
    )
    return seconds + max(rates[0].join_s, rates[1].join_s)


def _attention_bytes(system: System, num_ranks: Ints) -> Floats:
    copies = num_ranks.astype(np.float64)
    if system.attention.hardware.cores_per_node:
        copies = np.minimum(copies, 1.0)
    return copies * float(system.attention.model.attention_bytes)


def _expert_bytes(system: System, grid: Grid, num_ranks: Ints) -> Floats:
    model = system.experts.model
    slots = grid.num_slots * float(model.expert_bytes) * model.num_sparse_layers
    found: Floats = num_ranks * (slots + model.gate_bytes)
    return found
