"""Messages that share the links of nodes fairly, on the clock of a simulation.

Pure. A node has one link out and one in, all of one rate. Messages of one connection go one after the
other; connections under way share each link evenly (max-min), none faster than `most_rate`.
"""

from collections import defaultdict, deque
from collections.abc import Hashable

from janus_hpc.planner.event_clock import Clock, Signal

# Less is left of a message only because of rounding.
_LEAST_BYTES = 1e-3
Pair = tuple[int, int]


class SharedLinks:
    """Rates are bytes a second."""

    def __init__(self, clock: Clock, rate: float, most_rate: float) -> None:
        self._clock, self._rate, self._most_rate = clock, rate, most_rate
        self._waiting: defaultdict[Hashable, deque[tuple[float, Signal]]] = defaultdict(deque)
        # Connection -> its nodes, bytes left of its first message, and its rate now.
        self._nodes: dict[Hashable, Pair] = {}
        self._left: dict[Hashable, float] = {}
        self._rates: dict[Pair, float] = {}
        self._since_s = 0.0
        self._version = 0
        self._is_stale = False

    def move(self, connection: Hashable, nodes: Pair, num_bytes: float) -> Signal:
        """Begin a message from nodes[0] to nodes[1]; the signal: it has come."""
        arrived = Signal()
        self._waiting[connection].append((num_bytes, arrived))
        if connection not in self._left:
            self._pass_time()
            self._nodes[connection], self._left[connection] = nodes, num_bytes
            self._later()
        return arrived

    def _later(self) -> None:
        """Find new rates once all that happens at this time has happened."""
        if not self._is_stale:
            self._is_stale = True
            self._clock.at(self._clock.now_s, self._share)

    def _pass_time(self) -> None:
        elapsed_s, self._since_s = self._clock.now_s - self._since_s, self._clock.now_s
        for connection, nodes in self._nodes.items():
            self._left[connection] -= elapsed_s * self._rates.get(nodes, 0.0)

    def _share(self) -> None:
        self._pass_time()
        self._is_stale = False
        self._version += 1
        self._find_rates()
        ends_s = [self._left[its] / self._rates[nodes] for its, nodes in self._nodes.items()]
        if ends_s:
            version = self._version
            self._clock.at(self._clock.now_s + max(min(ends_s), 0.0), lambda: self._end(version))

    def _end(self, version: int) -> None:
        """Messages without bytes left have come, unless rates have changed in between."""
        if version != self._version:
            return
        self._pass_time()
        for connection in [its for its, left in self._left.items() if left < _LEAST_BYTES]:
            queue = self._waiting[connection]
            _, arrived = queue.popleft()
            self._clock.set(arrived)
            if queue:
                self._left[connection] = queue[0][0]
            else:
                del self._left[connection], self._nodes[connection]
        self._later()

    def _find_rates(self) -> None:
        """Max-min: the fullest link gives each of its connections the same, then the next one."""
        counts: defaultdict[Pair, int] = defaultdict(int)
        for nodes in self._nodes.values():
            counts[nodes] += 1
        room: dict[tuple[str, int], float] = {}
        for sender, receiver in counts:
            room["out", sender] = room["in", receiver] = self._rate
        self._rates = {}
        while counts:
            users: defaultdict[tuple[str, int], int] = defaultdict(int)
            for (sender, receiver), count in counts.items():
                users["out", sender] += count
                users["in", receiver] += count
            link = min(users, key=lambda its: room[its] / users[its])
            rate = min(room[link] / users[link], self._most_rate)
            way, node = link
            for pair in [its for its in counts if its[way == "in"] == node]:
                self._rates[pair] = rate
                count = counts.pop(pair)
                room["out", pair[0]] = max(room["out", pair[0]] - rate * count, 0.0)
                room["in", pair[1]] = max(room["in", pair[1]] - rate * count, 0.0)
