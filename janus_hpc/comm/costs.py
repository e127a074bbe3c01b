"""What moving bytes costs on the ranks of a run: the measured values that predictions rest on.

Plain data; knows neither how it was measured nor where it is stored.
"""

import msgspec


class LinkCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one link. Times are one way, seconds; `across` and `inside` have (bytes, seconds), ascending.

    `across`: between two nodes, nothing else under way; empty on one node. `across_busy_s`: a small
    message while pairs of ranks of all nodes do the same. `node_rate`: bytes a second that leave a
    node while all its ranks send, and half of the nodes do. `inside`: between two ranks of a node, all pairs at once.
    """

    across: tuple[tuple[int, float], ...] = ()
    across_busy_s: float = 0.0
    node_rate: float = 0.0
    inside: tuple[tuple[int, float], ...] = ()


class MemoryCosts(msgspec.Struct, frozen=True, kw_only=True):
    """All ranks at once, each: bytes a second copied, bytes a second of float64 parts added up, and
    the seconds until a counter posted by one rank is seen by a waiting one of its node.
    """

    copy_rate: float
    add_rate: float
    signal_s: float


class ExchangeCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Link name -> its costs, and those of memory."""

    links: dict[str, LinkCosts]
    memory: MemoryCosts
