"""The fewest bytes that a kind of exchange must send between nodes for one layer, from the topology alone.

Worked out without the plans of `comm.plan`, so that plans and counters can be compared with it.
"""

from collections.abc import Sequence

from janus_hpc.topology import Topology

# float64 where another part is still to be added, float32 for whole sums on their last way.
_PART_BYTES, _SUM_BYTES = 8, 4
# With the gate on the attention side a row travels with expert id, weight and token number.
ROUTED_META_BYTES = 12

Part = tuple[int, int]


def minimum_bytes(
    topology: Topology,
    kind: str,
    num_tokens: Sequence[int],
    *,
    row_bytes: int,
    hidden: int,
    routed_AE: Sequence[Sequence[int]] | None = None,
) -> int:
    """Bytes between nodes, there and back, of "one-phase", "direct" or "relay".

    num_tokens[a]: tokens of attention role rank a. `routed_AE`: rows that they choose on expert role
    rank e, with the gate on the attention side; headers and padding of frames come on top.
    """
    sources = _parts(topology, topology.attention_ranks, kind)
    targets = _parts(topology, topology.expert_ranks, kind)
    total = 0
    for index, (source, attention) in enumerate(sources.items()):
        others = [target for target in targets if target != source]
        if kind == "relay" and others:
            shift = index % len(others)
            others = others[shift:] + others[:shift]
        away = [place for place, target in enumerate(others) if target[0] != source[0]]
        count = sum(num_tokens[a] for a in attention)
        if routed_AE is None:
            total += len(away) * count * row_bytes
        else:
            for place in away:
                rows = sum(routed_AE[a][e] for a in attention for e in targets[others[place]])
                # A relay passes rows for the target at a place through as many others as it has bits.
                hops = 1 + place.bit_count() if kind == "relay" else 1
                total += hops * rows * (row_bytes + ROUTED_META_BYTES)
        num_senders = 1 if kind == "relay" else len(others)
        is_whole = num_senders == 1 and source not in targets
        for place in away:
            whole = is_whole and place == 0
            total += count * hidden * (_SUM_BYTES if whole else _PART_BYTES)
    return total


def _parts(topology: Topology, world_ranks: Sequence[int], kind: str) -> dict[Part, list[int]]:
    """Node (and rank, in one-phase) -> role ranks of those who act as one; node by node."""
    parts: dict[Part, list[int]] = {}
    for role_rank, world_rank in enumerate(world_ranks):
        key = (topology.node_ids[world_rank], world_rank if kind == "one-phase" else 0)
        parts.setdefault(key, []).append(role_rank)
    return dict(sorted(parts.items()))
