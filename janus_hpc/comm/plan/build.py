"""The plan of one rank for one microbatch: which chunks it sends, passes on, receives and reduces.

Pure: knows groups, trees and how many rows there are, but no memory and no transport. The work of
a group is spread over its ranks chunk by chunk.
"""

from collections.abc import Sequence
from itertools import accumulate

from janus_hpc.comm.plan.fabric import Fabric, Group, Tree, parent_of
from janus_hpc.comm.plan.steps import (
    Add,
    AwaitAnswered,
    AwaitGathered,
    Chain,
    Chunk,
    Land,
    Need,
    Payload,
    RankPlan,
    Recv,
    Reduce,
    Rows,
    Send,
    Step,
)

MAX_CHUNKS = 8


def plan_rank(
    fabric: Fabric, counts: Sequence[int], world_rank: int, chunk_rows: int | None
) -> RankPlan:
    """The plan of an active rank; counts[a] are the tokens of fabric.attention_ranks[a].

    A group's rows are cut into chunks of about `chunk_rows`, at most MAX_CHUNKS; None for one.
    """
    group = fabric.group_of[world_rank]
    mine = _rows_of(fabric, counts).get(world_rank, Rows(0, 0))
    feed, fetch, take, reply = [], [], [], []
    tokens: list[Need] = []
    sums: list[Need] = []
    for chunk in chunks_of(fabric, counts, chunk_rows):
        tree = fabric.trees[chunk.source]
        if chunk.source == group.index:
            payload = _returned(fabric, tree, chunk.source)
            for child in tree[group.index]:
                there = _keeper(fabric.groups[child], chunk)
                if _sender(group, chunk, child) == world_rank:
                    send = Send(chunk, Payload.TOKENS, there, child)
                    feed.append((AwaitGathered(chunk), send))
                    fetch.append((Recv(chunk, payload, there, child), Land(chunk, child)))
                if mine.overlaps(chunk.rows):
                    sums.append(Need(chunk, payload, there, child))
        elif group.experts:
            if world_rank in group.experts:
                origin, sender = _peer(fabric, tree, group, chunk)
                tokens.append(Need(chunk, Payload.TOKENS, sender, origin))
            if _keeper(group, chunk) == world_rank:
                take.append(_take(fabric, tree, group, chunk))
                reply.append(_reply(fabric, tree, group, chunk))
    return RankPlan(
        feed=tuple(feed),
        fetch=tuple(fetch),
        take=tuple(take),
        reply=tuple(reply),
        needs_tokens=tuple(tokens),
        needs_sums=tuple(sums),
    )


def chunks_of(fabric: Fabric, counts: Sequence[int], chunk_rows: int | None) -> list[Chunk]:
    """All chunks of a microbatch, source by source; a source without rows has none."""
    of_rank = _rows_of(fabric, counts)
    chunks = []
    for source in fabric.sources:
        ranks = fabric.groups[source].attention
        first, stop = of_rank[ranks[0]].first, of_rank[ranks[-1]].stop
        num_rows = stop - first
        wanted = 1 if chunk_rows is None else -(-num_rows // chunk_rows)
        num_chunks = min(wanted, MAX_CHUNKS) if num_rows else 0
        edges = [first + num_rows * i // num_chunks for i in range(num_chunks)] + [stop]
        for index in range(num_chunks):
            chunks.append(Chunk(source, index, Rows(edges[index], edges[index + 1])))
    return chunks


def _rows_of(fabric: Fabric, counts: Sequence[int]) -> dict[int, Rows]:
    """Attention rank -> its rows."""
    ends = list(accumulate(counts))
    ranks = fabric.attention_ranks
    return {
        rank: Rows(end - count, end) for rank, end, count in zip(ranks, ends, counts, strict=True)
    }


def _sender(source: Group, chunk: Chunk, child: int) -> int:
    """The attention rank of the source that exchanges a chunk with a child of the tree."""
    return source.attention[(chunk.index + child) % len(source.attention)]


def _keeper(group: Group, chunk: Chunk) -> int:
    """The expert rank of a group that receives a chunk, passes it on and answers it."""
    return group.experts[(chunk.index + chunk.source) % len(group.experts)]


def _returned(fabric: Fabric, tree: Tree, source: int) -> Payload:
    """What the children of the source send it: whole sums, where there is no other part to add."""
    alone = len(tree[source]) == 1 and not fabric.groups[source].experts
    return Payload.SUMS if alone else Payload.PARTS


def _peer(fabric: Fabric, tree: Tree, group: Group, chunk: Chunk) -> tuple[int, int]:
    """The group above in the tree, and its rank that exchanges this chunk with `group`."""
    parent = parent_of(tree, group.index)
    assert parent is not None, f"{group=} is the root of {tree=}"
    above = fabric.groups[parent]
    if parent == chunk.source:
        return parent, _sender(above, chunk, group.index)
    return parent, _keeper(above, chunk)


def _take(fabric: Fabric, tree: Tree, group: Group, chunk: Chunk) -> Chain:
    origin, sender = _peer(fabric, tree, group, chunk)
    steps: list[Step] = [Recv(chunk, Payload.TOKENS, sender, origin), Land(chunk, origin)]
    for child in tree[group.index]:
        below = _keeper(fabric.groups[child], chunk)
        steps.append(Send(chunk, Payload.TOKENS, below, child))
    return tuple(steps)


def _reply(fabric: Fabric, tree: Tree, group: Group, chunk: Chunk) -> Chain:
    target, receiver = _peer(fabric, tree, group, chunk)
    steps: list[Step] = [AwaitAnswered(chunk), Reduce(chunk)]
    for child in reversed(tree[group.index]):
        below = _keeper(fabric.groups[child], chunk)
        steps += [Recv(chunk, Payload.PARTS, below, child), Add(chunk, child)]
    at_source = target == chunk.source
    payload = _returned(fabric, tree, chunk.source) if at_source else Payload.PARTS
    steps.append(Send(chunk, payload, receiver, target))
    return tuple(steps)
