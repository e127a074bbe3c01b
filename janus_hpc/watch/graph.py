"""Who waits for whom: the wait-for graph of all ranks in words, and where it begins or turns in a circle.

Pure functions of heartbeats; decides nothing.
"""

from collections.abc import Collection, Mapping

from janus_hpc.watch.beat import Beat


def culprits(beats: Mapping[int, Beat], silent: Collection[int]) -> list[int]:
    """The ranks that others wait for and that wait for nobody themselves: silent ones, else those that compute."""
    gone = sorted(silent)
    if gone:
        return gone
    return [rank for rank in sorted(beats) if not beats[rank].waiting]


def edges(beats: Mapping[int, Beat], silent: Collection[int]) -> dict[int, list[int]]:
    """World rank -> the ranks it waits for. Who waits for all waits for those that wait for nobody."""
    ends = culprits(beats, silent)
    found: dict[int, list[int]] = {}
    for rank, beat in sorted(beats.items()):
        if rank in silent or not beat.waiting:
            found[rank] = []
        elif beat.waits_for:
            found[rank] = [peer for peer in beat.waits_for if peer != rank]
        else:
            found[rank] = [peer for peer in ends if peer != rank]
    return found


def find_cycle(graph: Mapping[int, list[int]]) -> list[int]:
    """World ranks of a circle, each waiting for the next and the last for the first; [] where there is none."""
    finished: set[int] = set()
    for start in sorted(graph):
        path: list[int] = []
        where = {}
        stack: list[tuple[int, int]] = [(start, 0)]
        while stack:
            rank, at = stack.pop()
            if at == 0:
                if rank in finished:
                    continue
                where[rank] = len(path)
                path.append(rank)
            peers = graph.get(rank, [])
            if at < len(peers):
                stack.append((rank, at + 1))
                peer = peers[at]
                if peer in where:
                    return path[where[peer] :]
                stack.append((peer, 0))
            else:
                finished.add(rank)
                del where[rank]
                path.pop()
    return []


def describe(beats: Mapping[int, Beat], silent: Collection[int]) -> list[str]:
    """A line a rank, then what the graph comes to."""
    graph = edges(beats, silent)
    lines = [_line(beat, rank in silent, graph[rank]) for rank, beat in sorted(beats.items())]
    cycle = find_cycle(graph)
    if cycle:
        circle = " -> ".join(str(rank) for rank in [*cycle, cycle[0]])
        lines.append(f"they wait in a circle: {circle}")
    names = ", ".join(f"[{beats[rank].label}]" for rank in culprits(beats, silent) if rank in beats)
    if names:
        lines.append(f"all others wait for: {names}")
    return lines


def _line(beat: Beat, is_silent: bool, peers: list[int]) -> str:
    head = f"[{beat.label}] pid {beat.pid}, step {beat.num_steps}"
    head += f", {beat.where}" if beat.where else ""
    if is_silent:
        return f"{head}: no heartbeat any more, the process is stopped or gone"
    if not beat.waiting:
        return f"{head}: computes, or is inside the operating system"
    ranks = ", ".join(map(str, peers[:8])) + (", ..." if len(peers) > 8 else "")
    return f"{head}: for {beat.waiting_s:.0f} s: {beat.waiting} (world ranks {ranks})"
