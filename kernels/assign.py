"""Which rank computes each activated expert, so that the fullest rank has as few as possible.

Plain Python over integers: the twin of native/balance.h and balance_triton.py, which come to the same
choices, and what runs where there is no compiler. Knows no tensors.

A rank set is an integer, bit g for expert rank g; `hosts[e]` are the ranks with a replica of expert e.
"""

from collections.abc import Sequence

# In the order of the numbers in native/balance.h.
POLICIES = ("aebs", "greedy", "eplb", "random", "first")
_MASK64 = (1 << 64) - 1


def assign(
    policy: str,
    active: Sequence[int],
    hosts: Sequence[int],
    primary: Sequence[int],
    num_ranks: int,
    draw: int,
) -> dict[int, int]:
    """The rank of each activated expert (ascending ids) by a policy that takes one replica an expert."""
    if policy == "aebs":
        return assign_balanced(active, hosts, primary, num_ranks)
    if policy == "greedy":
        return assign_greedy(active, hosts, num_ranks)
    if policy == "random":
        return assign_random(active, hosts, draw)
    assert policy == "first", f"{policy=}"
    return {expert: _lowest(hosts[expert]) for expert in active}


def assign_balanced(
    active: Sequence[int], hosts: Sequence[int], primary: Sequence[int], num_ranks: int
) -> dict[int, int]:
    """The rank of each activated expert (ascending ids) such that the largest count is minimal.

    An optimal semi-matching with unit jobs (METRO, arXiv 2512.09277, Lemma 1: one replica an expert is
    without loss). Every expert starts on its primary. While a rank has more experts than the bound, experts
    move along a shortest path to a rank below the bound, one from each rank of the path; where there is no
    path the bound was too low. Ends after at most one pass a path for each activated expert and one for each
    unit of the bound. Ties go to the lowest rank, then to the lowest expert.
    """
    rank_of = {expert: primary[expert] for expert in active}
    loads = [0] * num_ranks
    for expert_rank in rank_of.values():
        loads[expert_rank] += 1
    bound = -(-len(rank_of) // num_ranks)
    while max(loads) > bound:
        levels = _levels_to(loads, bound, rank_of, hosts)
        over = [g for g in range(num_ranks) if loads[g] > bound and levels[-1] >> g & 1]
        if not over:
            bound += 1
            continue
        loads[over[0]] -= 1
        loads[_shift(over[0], levels, rank_of, hosts)] += 1
    return rank_of


def _levels_to(
    loads: Sequence[int], bound: int, rank_of: dict[int, int], hosts: Sequence[int]
) -> list[int]:
    """Ranks below the bound, then ranks one move away from them, two, ...; the last holds a rank above
    the bound or is empty.
    """
    over = sum(1 << g for g, load in enumerate(loads) if load > bound)
    levels = [sum(1 << g for g, load in enumerate(loads) if load < bound)]
    reached = levels[0]
    while levels[-1] and not levels[-1] & over:
        found = 0
        for expert, expert_rank in rank_of.items():
            if hosts[expert] & reached:
                found |= 1 << expert_rank
        levels.append(found & ~reached)
        reached |= found
    return levels


def _shift(
    expert_rank: int, levels: list[int], rank_of: dict[int, int], hosts: Sequence[int]
) -> int:
    """Move an expert from each rank of the path to the next; the rank where it ends."""
    for below in reversed(levels[:-1]):
        expert = min(e for e, g in rank_of.items() if g == expert_rank and hosts[e] & below)
        expert_rank = _lowest(hosts[expert] & below)
        rank_of[expert] = expert_rank
    return expert_rank


def assign_greedy(active: Sequence[int], hosts: Sequence[int], num_ranks: int) -> dict[int, int]:
    """Janus, Algorithm 1: experts with one replica first, the others each to the least loaded host.

    Experts in ascending id, ties to the lowest rank.
    """
    loads = [0] * num_ranks
    rank_of: dict[int, int] = {}
    for single in (True, False):
        for expert in active:
            if (hosts[expert].bit_count() == 1) is single:
                able = [g for g in range(num_ranks) if hosts[expert] >> g & 1]
                rank_of[expert] = min(able, key=loads.__getitem__)
                loads[rank_of[expert]] += 1
    return rank_of


def assign_random(active: Sequence[int], hosts: Sequence[int], draw: int) -> dict[int, int]:
    """A replica by a hash of expert and `draw`: the same on every rank that has the same draw."""
    return {e: nth_host(hosts[e], mix(draw, e) % hosts[e].bit_count()) for e in active}


def nth_host(mask: int, n: int) -> int:
    """The n-th rank of a set, from 0."""
    for _ in range(n):
        mask &= mask - 1
    return _lowest(mask)


def mix(draw: int, expert: int) -> int:
    """64 well mixed bits (the finaliser of splitmix64)."""
    z = (draw * 0x9E3779B97F4A7C15 + (expert + 1) * 0xD1B54A32D192ED03) & _MASK64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK64
    return z ^ z >> 31


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1
