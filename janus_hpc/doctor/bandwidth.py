"""Check `bandwidth`: time and rate of messages for each pair of nodes, and inside nodes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, fine, note, size, some, warning

SMALL, LARGE = 1 << 10, 1 << 20
# Message sizes with round trips of each.
_EFFORT = ((SMALL, 20), (LARGE, 5))
# A pair is slow under this share of the median rate.
_SLOW_SHARE = 0.5
# With fewer there is no telling which one is slow.
_FEWEST_PAIRS = 3

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LinkRates:
    """Pair of world ranks -> (seconds one way of a small message, bytes a second of large ones).

    `is_crowded`: ranks take turns on cores, so that pairs cannot be compared.
    """

    link: str
    is_crowded: bool
    across: dict[Pair, tuple[float, float]]
    inside: dict[Pair, tuple[float, float]]


def rounds_of(num_nodes: int) -> list[list[Pair]]:
    """Every pair of nodes once, in rounds in which no node is in two pairs (the circle method)."""
    places = list(range(num_nodes + num_nodes % 2))
    rounds = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        rounds.append([(min(p), max(p)) for p in pairs if max(p) < num_nodes])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def gather(context: Context) -> list[LinkRates]:
    """Measures over MPI, and over UCX where every rank has it. Alike on all ranks."""
    world = context.world
    if context.quick:
        raise Skip("not measured with --quick")
    if world is None or world.world_size == 1:
        raise Skip("one rank: nothing to measure")
    from janus_hpc.comm.measure import measure_pairs

    ranks_of = context.places.ranks_of
    across = [
        [(ranks_of[a][0], ranks_of[b][0]) for a, b in its] for its in rounds_of(len(ranks_of))
    ]
    inside = [pair for ranks in ranks_of for pair in zip(ranks[0::2], ranks[1::2], strict=False)]
    rounds = [*across, inside]
    is_crowded = any(world.allgather(world.ranks_per_core > 1))
    found = {}
    # "auto" is UCX where that works, and MPI, measured already, where not.
    for inter in ("mpi", "auto"):
        settings = context.env.ucx_settings
        its = measure_pairs(world, inter, rounds, _EFFORT, ucx_settings=settings)
        rates = {pair: (times[SMALL], LARGE / times[LARGE]) for pair, times in its.times.items()}
        found[its.link] = LinkRates(
            link=its.link,
            is_crowded=is_crowded,
            across={pair: rates[pair] for pairs in across for pair in pairs},
            inside={pair: rates[pair] for pair in inside},
        )
    return list(found.values())


def judge(facts: Sequence[list[LinkRates]], context: Context) -> list[Finding]:
    """Pure; all ranks have the same."""
    findings = []
    for link in facts[0]:
        if link.is_crowded:
            continue
        findings += _slow(link.across, f"{link.link} between nodes", context)
        findings += _slow(link.inside, f"{link.link} inside nodes", context)
    what = "; ".join(text for link in facts[0] for text in _texts(link))
    if facts[0][0].is_crowded:
        what += " (pairs not compared: more ranks than cores)"
    return [note(what), *findings] if findings else [fine(what)]


def _texts(link: LinkRates) -> list[str]:
    texts = []
    for rates, where in ((link.across, "between"), (link.inside, "inside")):
        if rates:
            latency_s = statistics.median(latency for latency, _ in rates.values())
            rate = statistics.median(rate for _, rate in rates.values())
            texts.append(f"{link.link} {where} nodes: {latency_s * 1e6:.3g} us, {size(rate)}/s")
    return texts


def _slow(rates: dict[Pair, tuple[float, float]], where: str, context: Context) -> list[Finding]:
    if len(rates) < _FEWEST_PAIRS:
        return []
    median = statistics.median(rate for _, rate in rates.values())
    slow = {pair: rate for pair, (_, rate) in rates.items() if rate < _SLOW_SHARE * median}
    if not slow:
        return []
    hosts = context.places.hosts
    worst = sorted(slow, key=lambda pair: slow[pair])
    texts = [
        f"{hosts[a]} (rank {a}) to {hosts[b]} (rank {b}): {size(slow[(a, b)])}/s" for a, b in worst
    ]
    return [
        warning(
            f"{where}: {len(slow)} of {len(rates)} pairs have less than half of the median rate, "
            f"{size(median)}/s: {some(texts, 3)}",
            why="a layer is as slow as its slowest pair",
            fix=f"{_advice(worst, hosts)}see cables and counters (ibstat, ethtool -S), what else runs "
            "there, and UCX_NET_DEVICES; measure again with `janus-hpc doctor --only bandwidth`",
            ranks={rank for pair in worst for rank in pair},
        )
    ]


def _advice(slow: Sequence[Pair], hosts: Sequence[str]) -> str:
    """The host that all slow pairs have in common, if there is one."""
    common = set.intersection(*({hosts[a], hosts[b]} for a, b in slow))
    if len(common) != 1 or len(slow) < 2:
        return ""
    host = common.pop()
    return f"all of them have {host} in common: leave it out (--exclude={host}), or "


CHECK = Check(name="bandwidth", gather=gather, judge=judge, communicates=True)
