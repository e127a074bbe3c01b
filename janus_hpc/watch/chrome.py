"""Timelines in Chrome's trace event format, which Perfetto and chrome://tracing open.

A process is a rank; times are microseconds. Knows nothing of clocks on other hosts but the shift it is given.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_hpc.watch.spans import Span


def events(
    world_rank: int, label: str, spans: Iterable[Span], shift_ns: Callable[[int], float]
) -> Iterator[dict[str, Any]]:
    """The events of one rank. `shift_ns` of a moment is what is to be added to it."""
    yield _meta(world_rank, "process_name", {"name": f"rank {world_rank}: {label}"})
    yield _meta(world_rank, "process_sort_index", {"sort_index": world_rank})
    for span in spans:
        args = {"layer": span.layer, "microbatch": span.microbatch} if span.layer >= 0 else {}
        yield {
            "name": span.name,
            "cat": "wait" if span.name.startswith("wait") else "work",
            "ph": "X",
            "ts": round((span.start_ns + shift_ns(span.start_ns)) / 1e3, 3),
            "dur": round((span.end_ns - span.start_ns) / 1e3, 3),
            "pid": world_rank,
            "tid": 0,
            "args": args,
        }


def _meta(world_rank: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": world_rank, "tid": 0, "args": args}


def write_part(path: Path, found: Iterable[dict[str, Any]]) -> None:
    """One rank's events, one a line. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for event in found:
            out.write(json.dumps(event, separators=(",", ":")) + "\n")


def join_parts(parts: Sequence[Path], path: Path, about: dict[str, Any]) -> None:
    """All ranks' events as one file, gzipped where its name ends in .gz; `about` goes along. Written aside
    and renamed. Raises OSError.
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        _join(parts, aside, about, zipped=path.suffix == ".gz")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _join(parts: Sequence[Path], path: Path, about: dict[str, Any], *, zipped: bool) -> None:
    with gzip.open(path, "wt") if zipped else path.open("w") as out:
        head = json.dumps({"displayTimeUnit": "ms", "otherData": about})
        out.write(head[:-1] + ', "traceEvents": [\n')
        separator = ""
        for part in parts:
            with part.open(encoding="utf-8") as lines:
                for line in lines:
                    out.write(separator + line.rstrip("\n"))
                    separator = ",\n"
        out.write("\n]}\n")
