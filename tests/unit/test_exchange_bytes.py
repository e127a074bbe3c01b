"""The fewest bytes between nodes: by hand, and no fewer and no more than the plans send."""

import random

import pytest

from janus_hpc.comm.plan.build import plan_rank
from janus_hpc.comm.plan.fabric import Kind, make_fabric
from janus_hpc.comm.plan.steps import Payload, Send
from janus_hpc.planner.exchange_bytes import ROUTED_META_BYTES, minimum_bytes
from janus_hpc.topology import Role, Topology

ROW, HIDDEN = 7, 5
WIDTHS = {Payload.TOKENS: ROW, Payload.PARTS: 8 * HIDDEN, Payload.SUMS: 4 * HIDDEN}


def topology_of(roles: list[Role], node_ids: list[int]) -> Topology:
    return Topology(
        roles=tuple(roles),
        node_ids=tuple(node_ids),
        hosts=tuple(f"n{node}" for node in node_ids),
        local_ranks=tuple(node_ids[:i].count(node) for i, node in enumerate(node_ids)),
    )


def planned_bytes(topology: Topology, kind: Kind, counts: list[int], chunk_rows: int | None) -> int:
    """What all ranks' plans send to other nodes."""
    fabric = make_fabric(topology, kind)
    by_rank = dict(zip(topology.attention_ranks, counts, strict=True))
    ordered = [by_rank[rank] for rank in fabric.attention_ranks]
    total = 0
    for rank in topology.active_ranks:
        plan = plan_rank(fabric, ordered, rank, chunk_rows)
        for chain in plan.feed + plan.fetch + plan.take + plan.reply:
            for step in chain:
                if isinstance(step, Send) and not topology.same_node((rank, step.world_rank)):
                    total += step.chunk.rows.num_rows * WIDTHS[step.payload]
    return total


@pytest.mark.parametrize("kind", list(Kind))
def test_plans_send_the_fewest_bytes(kind: Kind) -> None:
    draw = random.Random(3)
    for _ in range(300):
        size = draw.randint(2, 9)
        roles = draw.choices([Role.ATTENTION, Role.EXPERT, Role.COLOCATED, Role.PARKED], k=size - 2)
        roles += [Role.ATTENTION, Role.EXPERT]
        draw.shuffle(roles)
        node_ids = [draw.randrange(4) for _ in roles]
        topology = topology_of(roles, node_ids)
        counts = [draw.randint(0, 20) for _ in topology.attention_ranks]
        least = minimum_bytes(topology, kind, counts, row_bytes=ROW, hidden=HIDDEN)
        chunk_rows = draw.choice([None, 1, 3, 8])
        assert planned_bytes(topology, kind, counts, chunk_rows) == least, (topology, counts)


@pytest.mark.parametrize(
    ("kind", "rows", "widths"),
    [
        # Two tokens' rows for both ranks of node 1, and a float64 sum from each of the two.
        ("one-phase", 3, 2 * 8),
        ("direct", 3, 4),
        ("relay", 3, 4),
    ],
)
def test_routed_rows(kind: str, rows: int, widths: int) -> None:
    topology = topology_of([Role.ATTENTION, Role.EXPERT, Role.EXPERT], [0, 1, 1])
    least = minimum_bytes(topology, kind, [2], row_bytes=ROW, hidden=HIDDEN, routed_AE=[[1, 2]])
    assert least == rows * (ROW + ROUTED_META_BYTES) + 2 * HIDDEN * widths


def test_a_relay_carries_routed_rows_hop_by_hop() -> None:
    """Four expert nodes: the fourth one's rows go through the first and the second."""
    topology = topology_of([Role.ATTENTION] + [Role.EXPERT] * 4, [0, 1, 2, 3, 4])
    counts = [[1, 10, 100, 1000]]
    least = minimum_bytes(topology, "relay", [0], row_bytes=0, hidden=0, routed_AE=counts)
    assert least == (1 + 2 * 10 + 2 * 100 + 3 * 1000) * ROUTED_META_BYTES
