"""Heartbeats, wait-for graphs and stalls, on made-up ranks and a clock of the test's own."""

import random
from pathlib import Path

import msgspec

from janus_hpc.watch.beat import RECORD_BYTES, Beat, BeatFile, beats_dir, read_beats
from janus_hpc.watch.graph import culprits, describe, edges, find_cycle
from janus_hpc.watch.stall import Observer


def beat(rank: int, number: int = 1, count: int = 1, **more: object) -> Beat:
    role = "attention" if rank < 2 else "expert"
    plain = Beat(
        world_rank=rank,
        launch=0,
        label=f"{role} {rank % 2}/{rank}@h",
        host="h",
        pid=100 + rank,
        number=number,
        count=count,
        at_unix_s=0.0,
        elapsed_s=1.0,
    )
    return msgspec.structs.replace(plain, **more)


def waiting(rank: int, peers: tuple[int, ...], **more: object) -> Beat:
    return beat(rank, waiting="waits for tokens", waits_for=peers, **more)


def test_a_heartbeat_file_holds_the_last_one_and_long_texts_are_cut(tmp_path: Path) -> None:
    file = BeatFile(tmp_path, 3, is_synced=True)
    file.write(beat(3, where="x" * 5000, waits_for=tuple(range(1000))))
    assert read_beats(tmp_path)[3].where.startswith("xxx")
    file.write(beat(3, number=2))
    assert read_beats(tmp_path) == {3: beat(3, number=2)}
    file.close()
    path = beats_dir(tmp_path) / "rank-00003.beat"
    assert path.stat().st_size == RECORD_BYTES
    path.write_bytes(b"torn" + path.read_bytes()[4:])
    assert read_beats(tmp_path) == {}
    assert read_beats(tmp_path / "nowhere") == {}


def test_who_waits_for_a_silent_rank() -> None:
    beats = {0: waiting(0, (2,)), 1: waiting(1, ()), 2: beat(2), 3: waiting(3, (0, 1))}
    assert culprits(beats, {2}) == [2]
    assert edges(beats, {2}) == {0: [2], 1: [2], 2: [], 3: [0, 1]}
    text = "\n".join(describe(beats, {2}))
    assert "stopped or gone" in text and "all others wait for: [expert 0/2@h]" in text


def test_a_circle_is_found_and_a_tree_has_none() -> None:
    assert find_cycle({0: [1], 1: [2], 2: [0], 3: [0]}) == [0, 1, 2]
    assert find_cycle({0: [1, 2], 1: [2], 2: []}) == []
    assert "in a circle: 0 -> 1 -> 0" in "\n".join(
        describe({0: waiting(0, (1,)), 1: waiting(1, (0,))}, ())
    )


def test_cycles_agree_with_a_plain_search() -> None:
    """A graph has a circle exactly where removing ranks without edges, again and again, leaves some."""
    generator = random.Random(1)
    for _ in range(500):
        size = generator.randrange(1, 7)
        graph = {
            rank: [peer for peer in range(size) if peer != rank and generator.random() < 0.25]
            for rank in range(size)
        }
        left = dict(graph)
        while ends := [rank for rank, peers in left.items() if not set(peers) & left.keys()]:
            for rank in ends:
                del left[rank]
        found = find_cycle(graph)
        assert bool(found) == bool(left)
        for rank, peer in zip(found, [*found[1:], *found[:1]], strict=True):
            assert peer in graph[rank]


def test_a_stall_is_when_nothing_moves_and_nobody_has_a_reason() -> None:
    observer = Observer(10.0)
    for second in range(40):
        # Everybody waits, rank 2 beats no more from second 15 on.
        beats = {
            0: waiting(0, (2,), number=second),
            1: waiting(1, (2,), number=second),
            2: beat(2, number=min(second, 15)),
        }
        stall = observer.look(beats, float(second))
        if stall is not None:
            break
    assert stall is not None and stall.silent == {2} and stall.reporter == 0
    # At second 10 rank 2 was alive, outside of steps: it may have been loading.
    assert second == 25


def test_a_rank_that_loads_keeps_others_waiting_rightly() -> None:
    observer = Observer(10.0)
    for second in range(100):
        beats = {0: beat(0, number=second), 1: waiting(1, (), number=second)}
        assert observer.look(beats, float(second)) is None


def test_a_silent_rank_excuses_others_for_twice_as_long() -> None:
    """Where ranks change roles they free what they share inside MPI, which waits without a word of it."""
    observer = Observer(10.0)
    found = [observer.look({0: beat(0, number=s), 1: beat(1)}, float(s)) for s in range(22)]
    stall = found[20]
    assert found[19] is None and stall is not None
    assert stall.silent == {1} and stall.reporter == 0


def test_a_rank_that_computes_in_steps_for_so_long_hangs() -> None:
    observer = Observer(10.0)
    found = [
        observer.look(
            {0: beat(0, number=s, in_steps=True), 1: waiting(1, (0,), number=s)}, float(s)
        )
        for s in range(12)
    ]
    assert found[9] is None and found[10] is not None and not found[10].silent


def test_progress_of_any_rank_is_no_stall() -> None:
    observer = Observer(10.0)
    for second in range(100):
        beats = {
            0: waiting(0, (1,), number=second),
            1: beat(1, number=second, count=second, in_steps=True),
        }
        assert observer.look(beats, float(second)) is None


def test_where_the_lowest_rank_is_gone_the_next_one_tells() -> None:
    observer = Observer(10.0)
    for second in range(12):
        beats = {
            0: beat(0, in_steps=True),
            1: waiting(1, (0,), number=second),
            2: waiting(2, (0,), number=second),
        }
        stall = observer.look(beats, float(second))
    assert stall is not None and stall.reporter == 1
