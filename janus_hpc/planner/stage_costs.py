"""Seconds of the stages of one layer for many candidates at once: attention, experts, exchange. Pure.

Janus, section 3.5, Eq. 1b and 1c, with the terms that `profile_data` adds; coefficients follow how many ranks of a
node compute at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_hpc.planner.profile_data import AttentionCosts, ExpertCosts, LayerCosts, Profile
from janus_hpc.planner.system import KINDS, Floats, Grid, Ints, System

# Legend: X candidates, b tokens of an attention rank, N tokens of all of them.

# Expert id, weight and token number of a row that was routed on the attention side.
ROUTED_META_BYTES = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """How a candidate's ranks lie on nodes that are filled in turn, attention ranks first."""

    attention_local: Ints
    expert_local: Ints
    num_attention: Ints
    num_expert: Ints
    is_one: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def nodes_of(system: System, grid: Grid) -> Nodes:
    """The fullest node of each role, and the number of nodes each role is on."""
    size = system.node_size
    first = np.where(grid.colocated, 0, grid.num_attention)
    last = first + grid.num_expert
    return Nodes(
        attention_local=np.minimum(grid.num_attention, size),
        expert_local=np.minimum(grid.num_expert, size),
        num_attention=-(-grid.num_attention // size),
        num_expert=-(-last // size) - first // size,
        is_one=last <= size,
    )


def attention_s(system: System, sharing: Ints, num_tokens: Floats, context: Floats) -> Floats:
    """Of a sparse layer for b tokens with so many behind each."""
    return system.factors.attention * _layer_s(
        system.attention, "sparse", sharing, num_tokens, context
    )


def rest_s(system: System, sharing: Ints, num_tokens: Floats, context: Floats) -> Floats:
    """Of a step outside its sparse layers: dense layers, embedding, LM head, sampling."""
    profile = system.attention
    head = _by_sharing(profile, profile.attention, sharing, "head_0")
    head = head + _by_sharing(profile, profile.attention, sharing, "head_1") * num_tokens
    num_dense = profile.model.num_dense_layers
    if num_dense:
        head = head + num_dense * _layer_s(profile, "dense", sharing, num_tokens, context)
    rest: Floats = system.factors.attention * head
    return rest


def experts_s(
    system: System, grid: Grid, sharing: Ints, num_tokens: Floats, attention_tokens: Floats
) -> Floats:
    """Of a layer on the fullest expert rank for N tokens; with the gate on the attention side its part is
    for b tokens there.
    """
    profile = system.experts
    # An expert rank cannot activate more than its share of all choices.
    choices = num_tokens * profile.model.top_k
    a_max = system.a_max.a_max(grid.num_expert, grid.num_slots, num_tokens)
    gated = num_tokens if system.gate == "egate" else attention_tokens
    seconds = (
        _by_sharing(profile, profile.experts, sharing, "c_e")
        + _by_sharing(profile, profile.experts, sharing, "beta") * a_max
        + _by_sharing(profile, profile.experts, sharing, "gamma") * choices / grid.num_expert
        + _by_sharing(profile, profile.experts, sharing, "delta") * gated
    )
    found: Floats = system.factors.moe * seconds
    return found


def exchange_s(
    system: System, grid: Grid, nodes: Nodes, b: Floats, num_tokens: Floats
) -> tuple[Floats, Ints]:
    """Of a layer, there and back, by the kind that takes least; and which one (an index into KINDS).

    Between nodes every message costs both of its ranks, and a node's link carries what its ranks send: rows
    there, float64 parts back. A relay passes its rows on along a binomial tree of the expert nodes.
    """
    coefs, model = system.attention.exchange, system.attention.model
    active = np.minimum(grid.num_ranks(), system.node_size)
    inside = (
        coefs.fixed_s
        + coefs.per_rank_s * active
        + coefs.per_row_s * num_tokens
        + coefs.per_part_s * b * nodes.expert_local
    )
    inside = np.where(grid.num_ranks() == 1, 0.0, inside)
    if nodes.is_one.all():
        return system.factors.comm * inside, np.zeros(len(grid), dtype=np.int64)
    there, back = float(model.row_bytes), float(system.part_bytes * model.hidden)
    if system.gate == "agate":
        there, back = model.top_k * (there + ROUTED_META_BYTES), model.top_k * back
    of_node = b * nodes.attention_local
    others = np.maximum(nodes.num_expert - np.where(grid.colocated, 1, 0), 1)
    depth = np.ceil(np.log2(np.maximum(others, 1)))
    experts_away = np.maximum(grid.num_expert - np.where(grid.colocated, nodes.expert_local, 0), 1)
    messages = {
        "direct": np.maximum(others, nodes.num_attention),
        "relay": 1 + depth,
        "one-phase": np.maximum(grid.num_expert, grid.num_attention),
    }
    copies = {
        "direct": np.maximum(of_node * others, num_tokens),
        "relay": np.maximum(of_node * (1 + depth), num_tokens),
        # Every rank of a node gets its own; rows that were routed go to as many as they have choices.
        "one-phase": np.maximum(of_node * experts_away, num_tokens * nodes.expert_local)
        if system.gate == "egate"
        else np.maximum(of_node, num_tokens / np.maximum(nodes.num_expert, 1)),
    }
    rate = coefs.node_rate if coefs.node_rate > 0 else np.nan
    kinds = [kind for kind in KINDS[1:] if kind in system.kinds]
    times = np.stack(
        [2 * coefs.message_s * messages[its] + copies[its] * (there + back) / rate for its in kinds]
    )
    times = np.nan_to_num(times, nan=np.inf)
    best = times.argmin(axis=0)
    across = np.where(nodes.is_one, 0.0, times.min(axis=0))
    numbers = np.array([KINDS.index(kind) for kind in kinds], dtype=np.int64)
    which: Ints = np.where(nodes.is_one, 0, numbers[best])
    total: Floats = system.factors.comm * (inside + across)
    return total, which


def _layer_s(
    profile: Profile, kind: str, sharing: Ints, num_tokens: Floats, context: Floats
) -> Floats:
    """max(c_a, c_0 + alpha b + c_kv b S)."""
    sets: list[LayerCosts] = [getattr(its, kind) for its in profile.attention]

    def of(name: str) -> Floats:
        values = [float(getattr(its, name)) for its in sets]
        return _interpolate(
            profile, [its.num_sharing for its in profile.attention], values, sharing
        )

    line = of("c_0") + of("alpha") * num_tokens + of("c_kv") * num_tokens * context
    seconds: Floats = np.maximum(of("c_a"), line)
    return seconds


def _by_sharing(
    profile: Profile,
    sets: Sequence[AttentionCosts] | Sequence[ExpertCosts],
    sharing: Ints,
    name: str,
) -> Floats:
    values = [float(getattr(its, name)) for its in sets]
    return _interpolate(profile, [its.num_sharing for its in sets], values, sharing)


def _interpolate(
    profile: Profile, known: Sequence[int], values: Sequence[float], sharing: Ints
) -> Floats:
    """A coefficient for so many ranks that compute at once: between measured numbers on a line, beyond them in
    proportion where they share cores.
    """
    if len(values) == 1 and not profile.hardware.cores_per_node:
        return np.full(len(sharing), values[0])
    found: Floats = np.interp(sharing, known, values)
    if profile.hardware.cores_per_node:
        # Within the cores more ranks do not slow each other down, as far as is known.
        start = max(known[-1], profile.hardware.cores_per_node)
        found = found * np.maximum(sharing / start, 1.0)
    return found
