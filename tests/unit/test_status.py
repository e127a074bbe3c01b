"""What `status` makes of the files a run leaves, in every state, and of files that are none."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from janus_hpc.errors import UsageError
from janus_hpc.status.runs import find_runs, read_run, utilisation
from janus_hpc.status.show import lines
from janus_hpc.watch.beat import BeatFile
from tests.unit.test_watch import beat

NOW_S = 1_000_000.0
TOLD: dict[str, Any] = {
    "state": "running",
    "rows": 10,
    "rows_done": 4,
    "rows_failed": 1,
    "rows_in_flight": 2,
    "tokens_generated": 40,
    "tokens_per_s": 20.0,
    "elapsed_s": 2.0,
    "eta_s": 3725.0,
    "first_row_s": 0.5,
    "updated_at_unix_s": NOW_S - 1,
}


def tell(folder: Path, **more: object) -> Path:
    (folder / "x.h5.progress.json").write_text(json.dumps(TOLD | more))
    return folder / "x.h5"


def beats(folder: Path, at_unix_s: float, launch: int = 0, elapsed_s: float = 10.0) -> None:
    (folder / "x.h5.run").mkdir(exist_ok=True)
    for rank in range(3):
        file = BeatFile(folder / "x.h5.run", rank)
        file.write(
            beat(
                rank,
                at_unix_s=at_unix_s,
                launch=launch,
                elapsed_s=elapsed_s,
                attention_s=rank + 1.0,
            )
        )
        file.close()


def test_a_running_run(tmp_path: Path) -> None:
    output = tell(tmp_path)
    beats(tmp_path, NOW_S - 3)
    run = read_run(output, NOW_S)
    assert (run.state, run.age_s, len(run.beats)) == ("running", 1.0, 3)
    text = "\n".join(lines(run, {}))
    assert (
        "running, last heard of 1 s ago" in text
        and "4 of 10 (40.0 %), 1 failed, 2 in flight" in text
    )
    assert "20 tokens/s over 2 s, 1 h 2 min to go" in text
    assert "attention 2 ranks, computing 15 % of the time" in text


def test_utilisation_is_of_the_time_since_the_last_look() -> None:
    before = {0: beat(0, elapsed_s=10.0, attention_s=1.0)}
    now = {0: beat(0, elapsed_s=14.0, attention_s=4.0)}
    assert utilisation(now, before) == {"attention": (1, 0.75)}
    assert utilisation(now, {}) == {"attention": (1, 4.0 / 14.0)}
    restarted = {0: beat(0, elapsed_s=4.0, attention_s=1.0, launch=1)}
    assert utilisation(restarted, before) == {"attention": (1, 0.25)}


def test_states(tmp_path: Path) -> None:
    output = tell(tmp_path, updated_at_unix_s=NOW_S - 100)
    assert read_run(output, NOW_S).state == "no news"
    beats(tmp_path, NOW_S - 2, elapsed_s=200.0)
    assert read_run(output, NOW_S).state == "running"
    beats(tmp_path, NOW_S - 2)
    # The next launch beats already, the last one's word is old.
    tell(tmp_path, state="interrupted", updated_at_unix_s=NOW_S - 100)
    assert read_run(output, NOW_S).state == "starting"
    # A run that was killed in its middle and is started again, as well.
    tell(tmp_path, updated_at_unix_s=NOW_S - 100)
    again = read_run(output, NOW_S)
    assert (again.state, again.progress) == ("starting", None)
    tell(tmp_path, state="interrupted", updated_at_unix_s=NOW_S - 3)
    assert read_run(output, NOW_S).state == "interrupted"
    (tmp_path / "x.h5.progress.json").unlink()
    assert read_run(output, NOW_S).state == "starting"
    assert find_runs(tmp_path / "x.h5.run") == [output]


def test_a_run_is_starting_before_its_first_heartbeat(tmp_path: Path) -> None:
    (tmp_path / "x.h5.run").mkdir()
    (tmp_path / "x.h5.run" / "index.bin").write_text("")
    assert read_run(tmp_path / "x.h5", time.time()).state == "starting"


def test_results_without_a_run_folder_are_complete(tmp_path: Path) -> None:
    output = tell(tmp_path, state="merging", updated_at_unix_s=NOW_S - 1000)
    output.write_bytes(b"\x89HDF\r\n\x1a\n")
    assert read_run(output, NOW_S).state == "complete"
    (tmp_path / "x.h5.progress.json").unlink()
    assert find_runs(output) == [output] and read_run(output, NOW_S).state == "complete"
    (tmp_path / "notes.txt").write_text("no results")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        find_runs(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps(TOLD | {"updated_at_unix_s": None}),
        json.dumps(TOLD | {"rows_done": "4"}),
        json.dumps(TOLD | {"eta_s": float("nan")}),
        "\x00",
    ],
)
def test_a_progress_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.h5.progress.json").write_text(text)
    with pytest.raises(UsageError, match=r"x\.h5\.progress\.json"):
        read_run(tmp_path / "x.h5", NOW_S)
