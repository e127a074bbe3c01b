"""Lengths of rows: from prompts files as a run would read them, and what they say of contexts."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from janus_hpc.demo import demo_model_dir
from janus_hpc.errors import UsageError
from janus_hpc.plan.lengths import MOST_READ, row_lengths
from janus_hpc.plan.request import Request
from janus_hpc.planner.workload import Lengths
from tests.unit.planner_profiles import demo_profile, gpu_profile

DEMO, OTHER = demo_profile().model, gpu_profile().model


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(path: Path, **parts) -> Request:
    return Request(profile="made up", prompts=path, ranks=2, **parts)


def test_token_ids_and_answers_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": [5] * 7, "max_tokens": 30},
        {"prompt": [5] * 500},
        {"prompt": [5] * 9, "n": 3},
    ]
    found = row_lengths(request(write(tmp_path / "rows.jsonl", rows), max_tokens=40), DEMO)
    # The demo's context of 512 leaves room for 12; three samples are three sequences.
    assert list(found.prompts) == [7, 500, 9, 9, 9]
    assert list(found.answers) == [30, 12, 40, 40, 40]
    assert found.num_sequences == 5
    given = row_lengths(request(tmp_path / "rows.jsonl", mean_answer=10.0), DEMO)
    assert list(given.answers) == [10] * 5


def test_rows_that_will_not_run_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": [5] * 7}, {"prompt": [5], "nosuch": 1}, {"prompt": [5] * 5000}]
    found = row_lengths(request(write(tmp_path / "rows.jsonl", rows)), DEMO)
    assert found.num_sequences == 1 and "2 of these refused" in found.how
    with pytest.raises(UsageError, match="no row of it can be run: line 1: "):
        row_lengths(request(write(tmp_path / "bad.jsonl", rows[1:])), DEMO)
    with pytest.raises(UsageError, match="it has none"):
        row_lengths(request(write(tmp_path / "none.jsonl", [])), DEMO)


def test_a_big_file_is_sampled(tmp_path: Path) -> None:
    rows = [{"prompt": [5] * (1 + at % 7), "max_tokens": 3} for at in range(3 * MOST_READ)]
    found = row_lengths(request(write(tmp_path / "rows.jsonl", rows)), DEMO)
    assert len(found.prompts) == MOST_READ and found.num_sequences == 3 * MOST_READ
    assert f"{MOST_READ} of them read" in found.how
    assert np.mean(found.prompts) == pytest.approx(4, rel=0.1)


def test_without_a_tokenizer_bytes_stand_for_tokens(tmp_path: Path) -> None:
    """The profile is of another model than the demo, and no folder was named."""
    chat = {"messages": [{"role": "user", "content": "x" * 40}]}
    path = write(tmp_path / "rows.jsonl", [{"prompt": "y" * 100}, chat, {"prompt": [5] * 6}])
    found = row_lengths(request(path), OTHER)
    assert list(found.prompts) == [25, 10, 6]
    assert "without a tokenizer: 4 bytes counted as a token" in found.how
    with_codec = row_lengths(request(path, model=demo_model_dir()), OTHER)
    assert "without a tokenizer" not in with_codec.how
    assert list(with_codec.prompts) != [25, 10, 6]


@pytest.mark.parametrize("seed", range(5))
def test_contexts_are_those_of_all_decode_steps(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [rng.randrange(1, 50) for _ in range(30)]
    answers = [rng.randrange(1, 40) for _ in range(30)]
    behind = [p + step for p, d in zip(prompts, answers, strict=True) for step in range(d)]
    found = Lengths(prompts=prompts, answers=answers, num_sequences=30, how="").context()
    assert found.mean == pytest.approx(np.mean(behind))
    assert found.std == pytest.approx(math.sqrt(np.var(behind)))
