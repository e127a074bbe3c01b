"""Plans of random topologies, splits, kinds and token counts, played through without MPI.

Messages are synchronous: a send ends when its receive is posted, so a plan that could wait in a
cycle gets stuck here. Sums are multisets of expert ranks, so that none can be lost or added twice.
"""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from janus_hpc.comm.plan.build import MAX_CHUNKS, plan_rank
from janus_hpc.comm.plan.fabric import Fabric, Kind, make_fabric, parent_of, preorder
from janus_hpc.comm.plan.steps import (
    Add,
    AwaitAnswered,
    AwaitGathered,
    Chain,
    Land,
    Payload,
    RankPlan,
    Recv,
    Reduce,
    Send,
)
from janus_hpc.topology import Role, Topology

Sums = dict[int, Counter[int]]


class Play:
    """All ranks of one microbatch. `sent`, `answered`: ranks that have put their rows, their sums."""

    def __init__(self, fabric: Fabric, counts: list[int], chunk_rows: int | None) -> None:
        self.fabric, self.counts = fabric, counts
        ranks = sorted(fabric.group_of)
        self.plans: dict[int, RankPlan] = {
            rank: plan_rank(fabric, counts, rank, chunk_rows) for rank in ranks
        }
        self.sent: set[int] = set()
        self.answered: set[int] = set()
        self.rows: dict[int, Counter[int]] = {g.index: Counter() for g in fabric.groups}
        self.landed: dict[int, set[tuple[int, int, int]]] = {g.index: set() for g in fabric.groups}
        self.back: dict[tuple[int, int], Sums] = {}
        self.posted: dict[tuple[int, int, int, int, bool], list[object]] = {}
        self.messages: list[Send] = []
        self.chains: list[Iterator[bool]] = []
        for rank in ranks:
            self.chains.append(self.attention(rank))
            self.chains.append(self.expert(rank))

    def own_rows(self, rank: int) -> range:
        place = self.fabric.attention_ranks.index(rank)
        first = sum(self.counts[:place])
        return range(first, first + self.counts[place])

    def attention(self, rank: int) -> Iterator[bool]:
        """send_tokens and recv_outputs of one rank."""
        group = self.fabric.group_of[rank]
        if rank not in group.attention:
            return
        self.rows[group.index].update(self.own_rows(rank))
        self.sent.add(rank)
        plan = self.plans[rank]
        self.chains += [self.chain(rank, chain) for chain in plan.fetch + plan.feed]
        while not self.sums_are_there(rank):
            yield False
        experts = Counter(self.fabric.expert_ranks)
        origins = {need.origin for need in plan.needs_sums}
        for row in self.own_rows(rank):
            got = Counter(group.experts)
            for origin in sorted(origins):
                got += self.back[group.index, origin][row]
            assert got == experts, f"{rank=} {row=}: {got} instead of {experts}"

    def sums_are_there(self, rank: int) -> bool:
        group = self.fabric.group_of[rank]
        landed = self.landed[group.index]
        needs = self.plans[rank].needs_sums
        there = all((n.chunk.source, n.chunk.index, n.origin) in landed for n in needs)
        return there and self.answered.issuperset(group.experts)

    def expert(self, rank: int) -> Iterator[bool]:
        """recv_tokens and send_outputs of one rank."""
        group = self.fabric.group_of[rank]
        if rank not in group.experts:
            return
        plan = self.plans[rank]
        self.chains += [self.chain(rank, chain) for chain in plan.take]
        landed = self.landed[group.index]
        needs = {(n.chunk.source, n.chunk.index, n.origin) for n in plan.needs_tokens}
        while not (needs <= landed and self.sent.issuperset(group.attention)):
            yield False
        assert self.rows[group.index] == Counter(range(sum(self.counts))), f"{rank=}"
        self.answered.add(rank)
        self.chains += [self.chain(rank, chain) for chain in plan.reply]

    def chain(self, rank: int, chain: Chain) -> Iterator[bool]:
        group = self.fabric.group_of[rank]
        posted = {step: self.post(rank, step) for step in chain if isinstance(step, Recv)}
        sums: Sums = {}
        sends = []
        for step in chain:
            rows = range(step.chunk.rows.first, step.chunk.rows.stop)
            match step:
                case AwaitGathered():
                    while not self.sent.issuperset(group.attention):
                        yield False
                case AwaitAnswered():
                    while not self.answered.issuperset(group.experts):
                        yield False
                case Recv():
                    while not posted[step]:
                        yield False
                case Land(chunk, origin):
                    received = next(posted[s] for s in chain if isinstance(s, Recv))[0]
                    self.land(group.index, chunk.source, origin, received, rows)
                    self.landed[group.index].add((chunk.source, chunk.index, origin))
                case Reduce():
                    sums = {row: Counter(group.experts) for row in rows}
                case Add(_, origin):
                    part = next(s for s in posted if s.origin == origin)
                    for row in rows:
                        sums[row] += posted[part][0][row]
                case Send():
                    sends.append(self.send(rank, step, sums))
        for send in sends:
            while not next(send, True):
                yield False

    def key(self, source: int, target: int, step: Send | Recv) -> tuple[int, int, int, int, bool]:
        chunk = step.chunk
        return source, target, chunk.source, chunk.index, step.payload is Payload.TOKENS

    def post(self, rank: int, step: Recv) -> list[object]:
        key = self.key(step.world_rank, rank, step)
        assert key not in self.posted, f"two receives of {key}"
        self.posted[key] = []
        return self.posted[key]

    def send(self, rank: int, step: Send, sums: Sums) -> Iterator[bool]:
        group = self.fabric.group_of[rank]
        content: object = {row: Counter(its) for row, its in sums.items()}
        if step.payload is Payload.TOKENS:
            have = self.rows[group.index]
            assert all(have[row] == 1 for row in range(step.chunk.rows.first, step.chunk.rows.stop))
            content = "tokens"
        if step.payload is Payload.SUMS:
            assert all(its == Counter(self.fabric.expert_ranks) for its in sums.values())
        self.messages.append(step)
        key = self.key(rank, step.world_rank, step)
        while key not in self.posted:
            yield False
        assert not self.posted[key], f"two messages for {key}"
        self.posted[key].append(content)

    def land(self, group: int, source: int, origin: int, received: object, rows: range) -> None:
        if source != group:
            assert received == "tokens"
            self.rows[group].update(rows)
            return
        assert isinstance(received, dict)
        for row in rows:
            self.back.setdefault((group, origin), {})[row] = received[row]

    def run(self, draw: random.Random) -> None:
        while self.chains:
            before = len(self.chains)
            moved = False
            draw.shuffle(self.chains)
            for chain in list(self.chains):
                state = (len(self.sent), len(self.answered), len(self.messages), len(self.posted))
                if next(chain, None) is None:
                    self.chains.remove(chain)
                after = (len(self.sent), len(self.answered), len(self.messages), len(self.posted))
                moved |= after != state
            assert moved or len(self.chains) < before, f"stuck: {self.chains}"


def random_topology(draw: random.Random) -> Topology:
    """Up to 5 nodes of 1 to 5 ranks with any mix of roles; ranks of a node need not be neighbours."""
    sizes = [draw.randint(1, 5) for _ in range(draw.randint(1, 5))]
    nodes = [node for node, size in enumerate(sizes) for _ in range(size)]
    colocated = draw.random() < 0.2 or len(nodes) == 1
    letters = [Role.COLOCATED] if colocated else [Role.ATTENTION, Role.EXPERT]
    roles = [draw.choice([*letters, *letters, Role.PARKED]) for _ in nodes]
    if colocated:
        roles[0] = Role.COLOCATED
    else:
        roles[0], roles[-1] = Role.ATTENTION, Role.EXPERT
    places = list(zip(roles, nodes, strict=True))
    if draw.random() < 0.3:
        draw.shuffle(places)
    return Topology(
        roles=tuple(role for role, _ in places),
        node_ids=tuple(node for _, node in places),
        hosts=tuple(f"n{node}" for _, node in places),
        local_ranks=(0,) * len(places),
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_random_plans(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        fabric = make_fabric(random_topology(draw), draw.choice(list(Kind)))
        most = draw.choice([0, 1, 5, 40])
        counts = [draw.randint(0, most) for _ in fabric.attention_ranks]
        play = Play(fabric, counts, draw.choice([None, 1, 4, 16]))
        play.run(draw)
        check_messages(fabric, counts, play.messages)


def check_messages(fabric: Fabric, counts: list[int], messages: list[Send]) -> None:
    """Every group but its own gets a source's rows once, and sends sums of them once."""
    rows: Counter[tuple[int, int, bool]] = Counter()
    for send in messages:
        tokens = send.payload is Payload.TOKENS
        rows[send.chunk.source, send.target, tokens] += send.chunk.rows.num_rows
    ranks = fabric.attention_ranks
    for source in fabric.sources:
        mine = set(fabric.groups[source].attention)
        num_rows = sum(n for rank, n in zip(ranks, counts, strict=True) if rank in mine)
        if not num_rows:
            continue
        tree = fabric.trees[source]
        for group in fabric.groups:
            if group.index == source:
                continue
            assert rows[source, group.index, True] == (num_rows if group.experts else 0)
            assert rows[source, group.index, False] == num_rows * len(tree.get(group.index, ()))
        assert rows[source, source, False] == num_rows * len(tree[source])
    chunks = {(send.chunk.source, send.chunk.index) for send in messages}
    assert all(index < MAX_CHUNKS for _, index in chunks)


def nodes_of(*letters: str) -> Topology:
    roles = {"a": Role.ATTENTION, "e": Role.EXPERT, "c": Role.COLOCATED}
    places = [(roles[letter], node) for node, part in enumerate(letters) for letter in part]
    return Topology(
        roles=tuple(role for role, _ in places),
        node_ids=tuple(node for _, node in places),
        hosts=tuple(f"n{node}" for _, node in places),
        local_ranks=(0,) * len(places),
    )


def test_inside_one_node_there_is_no_second_phase() -> None:
    for kind in Kind:
        fabric = make_fabric(nodes_of("aaeee"), kind)
        assert len(fabric.groups) == 1
        plan = plan_rank(fabric, [3, 4], 0, 1)
        assert not plan.feed + plan.fetch + plan.take + plan.reply


def test_relay_sends_once_from_the_source_and_doubles_on_the_way() -> None:
    fabric = make_fabric(nodes_of("a", *["e"] * 8), Kind.RELAY)
    tree = fabric.trees[0]
    assert len(tree[0]) == 1
    assert sorted(preorder(tree, tree[0][0])) == list(range(1, 9))

    def depth(group: int) -> int:
        parent = parent_of(tree, group)
        return 0 if parent is None else 1 + depth(parent)

    assert Counter(depth(group) for group in range(1, 9)) == Counter({1: 1, 2: 3, 3: 3, 4: 1})


def test_sources_begin_at_different_targets() -> None:
    fabric = make_fabric(nodes_of("a", "a", "a", "e", "e", "e"), Kind.RELAY)
    assert sorted(fabric.trees[source][source][0] for source in (0, 1, 2)) == [3, 4, 5]


def test_a_nodes_work_is_spread_over_its_ranks() -> None:
    fabric = make_fabric(nodes_of("aaaa", "eeee"), Kind.DIRECT)
    plans = [plan_rank(fabric, [64] * 4, rank, 32) for rank in range(8)]
    assert [len(plan.feed) for plan in plans] == [2, 2, 2, 2, 0, 0, 0, 0]
    assert [len(plan.take) for plan in plans] == [0, 0, 0, 0, 2, 2, 2, 2]
