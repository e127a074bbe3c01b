"""Whole jobs whose ranks change roles between batches: the same bytes as one rank alone, with both gates, with
microbatches, and when a rank is killed in the middle of a change.
"""

import random
import re
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.jobs.killing import kill_when
from tests.jobs.launcher import export_text, run_janus, write_rows
from tests.jobs.models import VOCAB, save_model, variants

OPTIONS = ["--model", "model", "--max-sequences", "4", "--max-step-tokens", "24"]
OPTIONS += ["--block-size", "8", "--kv-memory", "300KB", "--max-context", "100"]
NUM_ROWS, BATCH_ROWS = 20, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 20 experts, rows of uneven length, and one rank's answers."""
    folder = tmp_path_factory.mktemp("resplit")
    save_model(variants()["deepseek"], folder / "model")
    generator = random.Random(7)
    rows = []
    for index in range(NUM_ROWS):
        prompt = [generator.randrange(VOCAB) for _ in range(generator.randrange(1, 60))]
        row = {"prompt": prompt, "max_tokens": generator.randrange(1, 12), "logprobs": 2}
        rows.append(row | {"temperature": [0, 1.0][index % 2]})
    rows[9] = {"prompt": []}
    write_rows(folder / "rows.jsonl", rows)
    run_janus(0, "infer", "rows.jsonl", *OPTIONS, "-o", "alone.h5", cwd=folder, check=3)
    (folder / "alone.jsonl").write_text(export_text(folder / "alone.h5", folder))
    return folder


@pytest.mark.parametrize(
    ("num_ranks", "splits", "options"),
    [
        (4, "2a2e,1a3e,3a1e,4c", []),
        (5, "1a1e,2a3e,2c,colocated,1c", ["--gate", "agate"]),
        (5, "4a1e,1a4e,1a2e", ["--microbatches", "2", "--rebalance", "always"]),
        (4, "1a3e,4c,1a3e,2a1e,2a2e", ["--gate", "agate", "--slots", "20"]),
        (4, "2a2e,2a2e,1a3e", ["--microbatches", "3", "--rebalance", "always", "--slots", "12"]),
        (4, "3a1e,1a3e", ["--split", "colocated", "--exchange", "host", "--rebalance", "off"]),
    ],
)
def test_rows_are_byte_equal(folder: Path, num_ranks: int, splits: str, options: list[str]) -> None:
    asked = ["--replan", splits, "--batch-rows", str(BATCH_ROWS), *options]
    out = f"{num_ranks}-{splits}.h5"
    done = run_janus(
        num_ranks, "infer", "rows.jsonl", *OPTIONS, *asked, "-o", out, cwd=folder, check=3
    )
    assert export_text(folder / out, folder) == (folder / "alone.jsonl").read_text()
    run_janus(0, "results", "verify", out, cwd=folder)
    progress = [int(its) for its in re.findall(r"progress: (\d+)/20 rows", done.stderr)]
    assert progress == sorted(progress) and progress[-1] == NUM_ROWS
    with h5py.File(folder / out) as found:
        check_batches(found, num_ranks, splits.split(","), options)


def check_batches(found: h5py.File, num_ranks: int, splits: list[str], options: list[str]) -> None:
    """Every batch has its split, tells how the change before it went, and where its time went."""
    num_batches = NUM_ROWS // BATCH_ROWS
    expected = [splits[number % len(splits)] for number in range(num_batches)]
    if "--split" in options:
        expected[0] = "colocated"
    roles, decisions = text(found, "roles"), text(found, "decision")
    assert [len(its) for its in roles] == [num_ranks] * num_batches
    for split, its in zip(expected, roles, strict=True):
        wanted = f"{num_ranks}c" if split == "colocated" else split
        for number, letter in re.findall(r"(\d+)([aec])", wanted):
            assert its.count(letter) == int(number), f"{split=} {its=}"
    assert decisions[0].startswith("start: ")
    epochs, moved = found["batches/epoch"][:], found["batches/moved_bytes"][:]
    for number in range(1, num_batches):
        changes = roles[number] != roles[number - 1]
        assert decisions[number].startswith("re-split ") == changes
        assert found["batches/move_s"][number] > 0 or not changes
        assert epochs[number] > epochs[number - 1] or not changes
    assert moved[0] == 0 and moved.sum() > 0
    assert np.all(np.diff(found["batches/began_s"][:]) > 0)
    assert found["batches/num_rows"][:].tolist() == [BATCH_ROWS] * num_batches
    parts = sum(found[f"batches/{its}"][:] for its in ("attention_s", "moe_s", "comm_s"))
    assert np.allclose(parts, found["batches/decode_tpot_s"][:], rtol=1e-6)
    wanted = int(options[options.index("--microbatches") + 1]) if "--microbatches" in options else 1
    colocated = ["c" in its for its in roles]
    numbers = found["batches/microbatches"][:].tolist()
    if "--microbatches" in options:
        assert numbers == [1 if its else wanted for its in colocated]
    # All choices of all batches are counted.
    tokens_L = found["layers/expert_activations"][:].sum(axis=1)
    assert len(set(tokens_L.tolist())) == 1 and tokens_L[0] % 3 == 0
    assert np.all(found["routing/counts"][:].sum(axis=1) <= tokens_L)


def text(found: h5py.File, name: str) -> list[str]:
    values, offsets = (found[f"batches/{name}_{its}"][:] for its in ("values", "offsets"))
    return [values[start:stop].tobytes().decode() for start, stop in pairwise(offsets)]


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_rank_killed_in_a_change_loses_nothing(folder: Path, kill_at: int) -> None:
    """Resumed with another number of ranks and one split to the end."""
    out = f"killed-{kill_at}.h5"
    asked = ["--replan", "2a2e,1a3e,3a1e,4c", "--batch-rows", str(BATCH_ROWS), "-o", out]
    kill_when(4, ["infer", "rows.jsonl", *OPTIONS, *asked], folder, " begins: ", kill_at)
    assert not (folder / out).exists()
    asked = ["--split", "1a2e", "-o", out]
    done = run_janus(3, "infer", "rows.jsonl", *OPTIONS, *asked, cwd=folder, check=3)
    resumed = re.search(r"resuming: (\d+) of 20 rows", done.stderr)
    assert resumed is not None and int(resumed[1]) >= BATCH_ROWS * kill_at
    assert export_text(folder / out, folder) == (folder / "alone.jsonl").read_text()


def test_every_change_is_told_with_its_time_and_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{n}+{n}="} for n in range(8)])
    asked = ["--replan", "2a2e,1a3e,3a1e,4c", "--batch-rows", "1"]
    done = run_janus(4, "infer", "rows.jsonl", *asked, cwd=tmp_path)
    seconds = [float(its) for its in re.findall(r"re-split \S+ -> \S+ in (\S+) s: ", done.stderr)]
    assert len(seconds) == 7 and min(seconds) > 0
    assert re.search(r"filled \d+ slots, \S+ MB in \S+ s \(\S+ MB/s\), 0 from", done.stderr)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--replan", "1a1e,2a2e"], "--replan 1a1e,2a2e: split '2a2e' needs 4 ranks"),
        (["--replan", "1a1e,"], "--replan 1a1e,: split ''"),
        (["--replan", "sometimes"], "--replan sometimes: split 'sometimes' is not understood"),
        (["--replan", "1a2e,2a1e", "--slots", "10"], "take at least 20 slots"),
        (["--slo-tpot-ms", "-1"], "--slo-tpot-ms"),
        (["--slo-percentile", "p50"], "--slo-percentile"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, options: list[str], expected: str) -> None:
    done = run_janus(3, "infer", "rows.jsonl", *OPTIONS, *options, cwd=folder, check=2)
    assert expected in done.stderr
    assert not (folder / "rows.h5.run").exists()
