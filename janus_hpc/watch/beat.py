"""The heartbeat file of a rank: one record of fixed size, written over in place.

Owns the format; several hosts read it, so that nothing in it depends on a clock they would have to share.
"""

import os
import re
from pathlib import Path

import msgspec

RECORD_BYTES = 2048
_NAME = re.compile(r"^rank-(\d{5,})\.beat$")
_MAX_TEXT = 600


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """One rank at one moment. `number` counts its heartbeats, `count` what it has done.

    `waiting`: what for, "" while it computes; `waits_for`: world ranks, () for all; `waiting_s`: how long.
    `in_steps`: it is in the steps of a batch, where nothing takes long. `at_unix_s` is for people.
    """

    world_rank: int
    launch: int
    label: str
    host: str
    pid: int
    number: int
    count: int
    at_unix_s: float
    elapsed_s: float
    where: str = ""
    waiting: str = ""
    waits_for: tuple[int, ...] = ()
    waiting_s: float = 0.0
    in_steps: bool = False
    num_steps: int = 0
    attention_s: float = 0.0
    experts_s: float = 0.0
    rss_bytes: int = 0


def beats_dir(run_dir: Path) -> Path:
    """Where the heartbeat files of a run lie."""
    return run_dir / "beats"


def encode(beat: Beat) -> bytes:
    """RECORD_BYTES bytes of JSON and spaces; long texts are cut."""
    for limit in (_MAX_TEXT, _MAX_TEXT // 4, 0):
        short = msgspec.structs.replace(
            beat,
            where=beat.where[:limit],
            waiting=beat.waiting[:limit],
            waits_for=beat.waits_for if limit == _MAX_TEXT else beat.waits_for[:16],
        )
        data = msgspec.json.encode(short)
        if len(data) < RECORD_BYTES:
            break
    return data[: RECORD_BYTES - 1].ljust(RECORD_BYTES - 1) + b"\n"


class BeatFile:
    """This rank's file, opened when it is first written to. `is_synced`: hosts that share the folder over a network
    are to see each record soon.
    """

    def __init__(self, run_dir: Path, world_rank: int, *, is_synced: bool = False) -> None:
        self._path = beats_dir(run_dir) / f"rank-{world_rank:05d}.beat"
        self._is_synced = is_synced
        self._fd = -1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, beat: Beat) -> None:
        """In one call: a reader sees the old record, the new one, or a mixture that it cannot parse. Raises OSError."""
        if self._fd < 0:
            self._path.parent.mkdir(exist_ok=True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.pwrite(self._fd, encode(beat), 0)
        if self._is_synced:
            os.fdatasync(self._fd)


def read_beats(run_dir: Path) -> dict[int, Beat]:
    """World rank -> its last heartbeat; ranks whose record cannot be read just now are left out."""
    try:
        paths = sorted(beats_dir(run_dir).iterdir())
    except OSError:
        return {}
    beats: dict[int, Beat] = {}
    for path in paths:
        match = _NAME.match(path.name)
        if match is None:
            continue
        try:
            beats[int(match[1])] = msgspec.json.decode(path.read_bytes(), type=Beat)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
    return beats
