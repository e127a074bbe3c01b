"""Predicted times against ones worked out by hand, and the choice between kinds."""

import pytest

from janus_hpc.comm.costs import ExchangeCosts, LinkCosts, MemoryCosts
from janus_hpc.comm.plan.fabric import Kind, make_fabric
from janus_hpc.planner.event_clock import Clock
from janus_hpc.planner.exchange_bound import bound_s
from janus_hpc.planner.exchange_cost import Step, choose_exchange, predict_s
from janus_hpc.planner.exchange_model import RowSizes, interpolate
from janus_hpc.planner.shared_links import SharedLinks
from janus_hpc.topology import Role, Topology

LETTERS = {"a": Role.ATTENTION, "e": Role.EXPERT, "c": Role.COLOCATED}
HIDDEN, RATE = 1000, 1e8
ONE_CHUNK = 10**9


def topology_of(nodes: str) -> Topology:
    parts = nodes.split()
    roles = [LETTERS[letter] for part in parts for letter in part]
    node_ids = [node for node, part in enumerate(parts) for _ in part]
    return Topology(
        roles=tuple(roles),
        node_ids=tuple(node_ids),
        hosts=tuple(f"n{node}" for node in node_ids),
        local_ranks=tuple(node_ids[:i].count(node) for i, node in enumerate(node_ids)),
    )


def costs(
    *, message_s: float = 1e-9, memory_rate: float = 1e15, signal_s: float = 0.0
) -> ExchangeCosts:
    link = LinkCosts(
        across=((1000, 1e-9),),
        across_busy_s=message_s,
        node_rate=RATE,
        inside=((1000, message_s), (2000, message_s)),
    )
    memory = MemoryCosts(copy_rate=memory_rate, add_rate=memory_rate, signal_s=signal_s)
    return ExchangeCosts(links={"mpi": link}, memory=memory)


def predict(
    nodes: str, kind: str, tokens: int, its: ExchangeCosts, chunk: int = ONE_CHUNK
) -> float:
    topology = topology_of(nodes)
    counts = [tokens] * len(topology.attention_ranks)
    step = Step(num_tokens=counts, row_bytes=2 * HIDDEN, hidden=HIDDEN, chunk_bytes=chunk)
    return predict_s(topology, kind, step, its, "mpi")


# Bytes through the busiest link in units of tokens * HIDDEN, worked out by hand: rows of 2 bytes
# there, then sums of 8 bytes (4, where they are whole) back.
@pytest.mark.parametrize(
    ("nodes", "kind", "width"),
    [
        ("a e", "direct", 2 + 4),
        ("a e", "one-phase", 2 + 4),
        ("a ee", "one-phase", 2 * (2 + 8)),
        ("a ee", "direct", 2 + 4),
        ("a e e", "direct", 2 * (2 + 8)),
        # The first expert node gets 2, then sends 2; gets 8 back, then sends 4.
        ("a e e", "relay", 2 + 2 + 8 + 4),
        ("aa e", "direct", 2 * (2 + 4)),
        ("c c", "direct", 2 + 8),
    ],
)
def test_where_the_link_is_the_limit(nodes: str, kind: str, width: int) -> None:
    expected_s = width * 100 * HIDDEN / RATE
    assert predict(nodes, kind, 100, costs()) == pytest.approx(expected_s, rel=0.01)


def test_chunks_of_a_relay_overlap() -> None:
    whole_s = predict("a e e", "relay", 100, costs())
    assert predict("a e e", "relay", 100, costs(), chunk=13 * 2 * HIDDEN) < 0.75 * whole_s


def test_where_messages_are_the_limit() -> None:
    """A message costs half on either rank: here one after the other, there and back."""
    assert predict("a e", "direct", 1, costs(message_s=0.1)) == pytest.approx(0.2, rel=0.01)


def test_where_memory_is_the_limit() -> None:
    """Rows are copied, sums of two expert ranks are added up, and what came is rounded."""
    its = costs(memory_rate=1e3)
    rows_s, sums_s = 2 * HIDDEN / 1e3, 8 * HIDDEN / 1e3
    assert predict("a ee", "direct", 1, its) == pytest.approx(rows_s + 3 * sums_s, rel=0.01)


def test_inside_a_node_counters_are_all_there_is() -> None:
    assert predict("ae", "shm", 1, costs(signal_s=0.5)) == pytest.approx(1.0, rel=0.01)


def test_zero_tokens_take_next_to_no_time() -> None:
    assert predict("a e e", "relay", 0, costs()) < 1e-6


def test_microbatches_take_turns_on_the_link() -> None:
    """While the second's tokens leave, the first's sums come; the layer's bytes are the same."""
    topology = topology_of("a e")
    times_s = [
        predict_s(
            topology,
            "direct",
            Step(
                num_tokens=[120],
                row_bytes=2 * HIDDEN,
                hidden=HIDDEN,
                chunk_bytes=ONE_CHUNK,
                num_microbatches=number,
            ),
            costs(),
            "mpi",
        )
        for number in (1, 2)
    ]
    unit_s = 120 * HIDDEN / RATE
    assert times_s == pytest.approx([(2 + 4) * unit_s, (1 + 2 + 2) * unit_s], rel=0.01)


@pytest.mark.parametrize("nodes", ["aa ee ee", "a e e e e e e e", "ae ae ae", "aaa e ee e"])
@pytest.mark.parametrize("kind", list(Kind))
def test_the_bound_for_large_clusters_is_one(nodes: str, kind: Kind) -> None:
    """Close to what is simulated where groups send directly, and hardly above it elsewhere."""
    topology, tokens = topology_of(nodes), 100
    fabric = make_fabric(topology, kind)
    sizes = RowSizes(row_bytes=2 * HIDDEN, hidden=HIDDEN)
    counts = [tokens] * len(fabric.attention_ranks)
    least_s = bound_s(fabric, counts, sizes, costs().links["mpi"])
    found_s = predict(nodes, kind, tokens, costs())
    if kind is not Kind.RELAY and len(fabric.trees[0][0]) > 1:
        assert found_s == pytest.approx(least_s, rel=0.15)
    # A source that adds up nothing itself gets float32 back, which the bound does not look at.
    whole = any(
        len(fabric.trees[s][s]) == 1 and not fabric.groups[s].experts for s in fabric.sources
    )
    assert whole or found_s > 0.9 * least_s


def test_a_large_cluster_is_not_simulated() -> None:
    """Four sources; each gets sums back from 240 ranks one after the other."""
    expected_s = 4 * 240 * (2 + 8) * 8 * HIDDEN / RATE
    assert predict("aaaa" + " ee" * 120, "one-phase", 8, costs()) == pytest.approx(expected_s)


@pytest.mark.parametrize("gate_rows", [1, 4])
def test_rows_of_the_gate_on_the_attention_side(gate_rows: int) -> None:
    """Of the rows chosen, one in three goes to the expert rank of the own node."""
    step = Step(
        num_tokens=[300, 0, 0],
        row_bytes=2 * HIDDEN,
        hidden=HIDDEN,
        chunk_bytes=1,
        top_k=gate_rows,
    )
    found_s = predict_s(topology_of("c c c"), "direct", step, costs(), "mpi")
    there = gate_rows * 200 * (2 * HIDDEN + 12)
    back = 2 * 300 * HIDDEN * 8
    assert found_s == pytest.approx((there + back) / RATE, rel=0.01)


def test_the_choice_is_the_smallest_and_ties_go_to_direct() -> None:
    topology = topology_of("aa ee ee")
    step = Step(num_tokens=[64, 64], row_bytes=2000, hidden=1000, chunk_bytes=32000)
    choice = choose_exchange(topology, step, costs(), "mpi")
    assert set(choice.predicted_s) == {"one-phase", "direct", "relay"}
    assert choice.predicted_s[choice.kind] == min(choice.predicted_s.values())
    assert "128 tokens over mpi" in choice.why and "relay" in choice.why
    one_target = topology_of("a ee")
    step = Step(num_tokens=[64], row_bytes=2000, hidden=1000, chunk_bytes=32000)
    choice = choose_exchange(one_target, step, costs(), "mpi")
    assert choice.predicted_s["direct"] == choice.predicted_s["relay"]
    assert choice.kind == "direct"


def test_links_are_shared_fairly() -> None:
    """Two messages leave node 0 at half the rate each; the third has what is left at its receiver."""
    clock = Clock()
    links, ends_s = SharedLinks(clock, 10.0, 100.0), {}
    for name, nodes, size in (("a", (0, 1), 50.0), ("b", (0, 2), 50.0), ("c", (3, 2), 100.0)):
        arrived = links.move(name, nodes, size)
        arrived.waiting.append(lambda name=name: ends_s.__setitem__(name, clock.now_s))
    clock.run()
    assert ends_s == pytest.approx({"a": 10.0, "b": 10.0, "c": 15.0})


def test_no_message_is_faster_than_a_lone_one() -> None:
    clock = Clock()
    links = SharedLinks(clock, 10.0, 2.0)
    links.move("a", (0, 1), 20.0)
    links.move("a", (0, 1), 20.0)
    links.move("b", (0, 1), 20.0)
    clock.run()
    assert clock.now_s == pytest.approx(20.0)


def test_interpolation() -> None:
    points = [(10, 1.0), (20, 2.0), (40, 6.0)]
    sizes = [5, 10, 15, 30, 40, 50]
    assert [interpolate(points, size) for size in sizes] == [1.0, 1.0, 1.5, 4.0, 6.0, 8.0]
