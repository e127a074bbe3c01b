"""Runs for so many minutes, reads every rank's resident memory from its heartbeats, stops the run by a signal, and says
how much memory grew. Exit code 1 where it grew on any rank, or the run did not end as it should.
"""

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from janus_hpc.watch.beat import read_beats
from tests.jobs.launcher import janus_command

SAMPLE_S = 10.0
# Caches, pools and the allocator's arenas fill up in this share of the time.
WARM_UP = 0.3
# What a rank may have grown by from then on: a part of its memory, as noise of the allocator.
MAX_GROWTH = 0.02
END_LIMIT_S = 300.0


def rows(path: Path, count: int, seed: int) -> None:
    """Rows of all lengths and kinds."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as out:
        for index in range(count):
            word = "".join(generator.choices("abcdefghij", k=generator.randrange(1, 60)))
            task = generator.choice(["Reverse: {} =", "Sort: {} =", "Upper: {} ="])
            row = {"prompt": task.format(word), "max_tokens": generator.randrange(1, 150)}
            row |= {"temperature": index % 2, "ignore_eos": index % 3 == 0}
            row |= {"logprobs": 3} if index % 7 == 0 else {}
            row |= {"n": 2, "temperature": 1.0} if index % 11 == 0 else {}
            row |= {"stop": ["qz"], "presence_penalty": 0.2} if index % 13 == 0 else {}
            row |= {"prompt": ""} if index % 97 == 0 else {}
            out.write(json.dumps(row) + "\n")


def growth(samples: list[int]) -> float:
    """From the median of the first third after warming up to that of the last, as a share."""
    warm = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    first, last = statistics.median(warm[:third]), statistics.median(warm[-third:])
    return last / first - 1


@click.command()
@click.option("--minutes", default=30.0, type=click.FloatRange(0, min_open=True), help="[30]")
@click.option("--ranks", default=3, type=click.IntRange(1), help="[3]")
@click.option("--seed", default=1, help="of the rows [1]")
@click.option("--json", "json_to", type=click.Path(path_type=Path), help="all samples, in bytes")
@click.argument("options", nargs=-1)
def main(
    minutes: float, ranks: int, seed: int, json_to: Path | None, options: tuple[str, ...]
) -> None:
    """OPTIONS (after --) go to janus-hpc infer."""
    with tempfile.TemporaryDirectory(prefix="janus-soak-") as name:
        folder = Path(name)
        rows(folder / "rows.jsonl", 2_000_000, seed)
        command = janus_command(ranks, "infer", "rows.jsonl", "-o", "out.h5", *options)
        samples: dict[int, list[int]] = {rank: [] for rank in range(ranks)}
        with subprocess.Popen(command, cwd=folder) as run:
            ends_s = time.monotonic() + 60 * minutes
            while time.monotonic() < ends_s and run.poll() is None:
                time.sleep(SAMPLE_S)
                for rank, beat in read_beats(folder / "out.h5.run").items():
                    samples[rank].append(beat.rss_bytes)
            run.send_signal(signal.SIGUSR1)
            code = run.wait(END_LIMIT_S)
        told = json.loads((folder / "out.h5.progress.json").read_text())
    grown = {rank: growth(its) for rank, its in samples.items()}
    for rank, its in samples.items():
        print(
            f"rank {rank}: {len(its)} samples, {min(its) / 1e6:.1f} to {max(its) / 1e6:.1f} MB, last "
            f"{its[-1] / 1e6:.1f} MB, grew {100 * grown[rank]:+.2f} % after warming up"
        )
    print(f"exit {code}, {told['rows_done']} rows, {told['tokens_generated']} tokens")
    if json_to is not None:
        json_to.write_text(json.dumps(samples))
    sys.exit(code != 75 or max(grown.values()) > MAX_GROWTH)


if __name__ == "__main__":
    main()
