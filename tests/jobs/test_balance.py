"""Whole jobs under every policy, placement and number of slots, with experts moved between batches: the tokens
of transformers, and the same bytes as one rank alone.
"""

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.jobs.launcher import export_rows, export_text, run_janus, write_rows
from tests.jobs.models import VOCAB, greedy, save_model, variants

OPTIONS = ["--model", "model", "--max-sequences", "4", "--max-step-tokens", "24"]
OPTIONS += ["--block-size", "8", "--kv-memory", "300KB", "--max-context", "100"]
BATCHES = ["--batch-rows", "4", "--rebalance", "always"]
NUM_NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 20 experts, rows of uneven length, and one rank's answers, which are transformers'."""
    folder = tmp_path_factory.mktemp("balance")
    model = save_model(variants()["deepseek"], folder / "model")
    generator = random.Random(5)
    lengths = [1, 2, 60, 3, 31, 17, 5, 1, 26, 9, 40]
    prompts = [[generator.randrange(VOCAB) for _ in range(n)] for n in lengths]
    rows = [
        {"prompt": ids, "max_tokens": NUM_NEW, "temperature": 0, "logprobs": 3} for ids in prompts
    ]
    write_rows(folder / "rows.jsonl", rows)
    run_janus(0, "infer", "rows.jsonl", *OPTIONS, "-o", "alone.h5", cwd=folder)
    for row, ids in zip(export_rows(folder / "alone.h5", folder), prompts, strict=True):
        assert row["token_ids"] == greedy(model, ids, NUM_NEW)[0]
    (folder / "alone.jsonl").write_text(export_text(folder / "alone.h5", folder))
    return folder


@pytest.mark.parametrize(
    ("num_ranks", "split", "policy", "placement", "slots", "gate"),
    [
        (5, "2a3e", "aebs", "janus", 0, "egate"),
        (5, "1a4e", "greedy", "eplb", 9, "egate"),
        (3, "1a2e", "first", "janus", 10, "egate"),
        (4, "2a2e", "eplb", "contiguous", 15, "egate"),
        (4, "1a3e", "random", "contiguous", 20, "egate"),
        (5, "2a3e", "aebs", "janus", 9, "agate"),
        (3, "colocated", "eplb", "janus", 8, "agate"),
    ],
)
def test_rows_are_byte_equal(
    folder: Path, num_ranks: int, split: str, policy: str, placement: str, slots: int, gate: str
) -> None:
    out = f"{split}-{policy}-{placement}-{gate}.h5"
    asked = ["--split", split, "--balance", policy, "--placement", placement, "--gate", gate]
    asked += ["--slots", str(slots), *BATCHES]
    run_janus(num_ranks, "infer", "rows.jsonl", *OPTIONS, *asked, "-o", out, cwd=folder)
    assert export_text(folder / out, folder) == (folder / "alone.jsonl").read_text()
    with h5py.File(folder / out) as found:
        assert found.attrs["balance"] == policy and found.attrs["placement"] == placement
        check_batches(found, slots)


def check_batches(found: h5py.File, slots: int) -> None:
    """Each batch names its placement; what moved is what two placements in a row differ in."""
    epochs = found["batches/epoch"][:]
    assert found["batches/num_rows"][:].tolist() == [4, 4, 3]
    assert epochs[0] == 0 and np.all(np.diff(epochs) >= 0)
    placements_PLRC = found["placements/slots"][:]
    assert placements_PLRC.shape[0] == len(found["placements/epoch"][:]) == epochs[-1] + 1
    if slots:
        assert placements_PLRC.shape[3] == slots
    moved = found["batches/slots_moved"][:]
    for batch in range(1, 3):
        before, after = (placements_PLRC[epochs[its]] for its in (batch - 1, batch))
        assert moved[batch] == np.count_nonzero((after != before) & (after >= 0))


def test_routing_is_counted_alike_by_run_and_trace(folder: Path) -> None:
    """All tokens of a short run are sampled: the trace has the run's own counts, in both files."""
    asked = [
        "--split",
        "1a2e",
        "--routing-trace",
        "trace.h5",
        "-o",
        "traced.h5",
        "--microbatches",
        "1",
    ]
    run_janus(3, "infer", "rows.jsonl", *OPTIONS, *asked, cwd=folder)
    run_janus(0, "results", "verify", "traced.h5", cwd=folder)
    run_janus(0, "results", "export", "traced.h5", "--to", "trace", "-o", "same.h5", cwd=folder)
    with h5py.File(folder / "traced.h5") as results, h5py.File(folder / "trace.h5") as trace:
        tokens_LE = results["layers/expert_activations"][:]
        sampled_LE = trace["routing/counts"][:]
        assert np.all(sampled_LE <= tokens_LE) and np.all(sampled_LE.sum(axis=1) > 0)
        with h5py.File(folder / "same.h5") as same:
            for name in trace["routing"]:
                assert np.array_equal(trace["routing"][name][()], same["routing"][name][()])


def test_a_trace_places_the_next_run_and_a_foreign_one_is_refused(folder: Path) -> None:
    asked = ["--split", "1a3e", "--routing-trace", "again.h5", "-o", "first.h5"]
    run_janus(4, "infer", "rows.jsonl", *OPTIONS, *asked, cwd=folder)
    asked = ["--split", "1a3e", "--placement-from", "again.h5", "-o", "second.h5"]
    run_janus(4, "infer", "rows.jsonl", *OPTIONS, *asked, cwd=folder)
    assert export_text(folder / "second.h5", folder) == (folder / "alone.jsonl").read_text()
    with h5py.File(folder / "second.h5") as found:
        assert found.attrs["placement"] == "janus" and "again.h5" in found.attrs["placement_why"]
    done = run_janus(0, "infer", "rows.jsonl", "--placement-from", "again.h5", cwd=folder, check=2)
    assert "again.h5 has 20 experts, the model 32" in done.stderr
    assert not (folder / "rows.h5.run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--slots", "3"], "take at least"),
        (["--slots", "99"], "take at most 20 slots"),
        (["--placement-from", "nowhere.h5"], "nowhere.h5: no such file"),
        (["--placement-from", "rows.jsonl"], "rows.jsonl: not a readable HDF5 file"),
        (["--balance", "best"], "--balance"),
        (["--routing-trace", "no/such/trace.h5"], "--routing-trace"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, options: list[str], expected: str) -> None:
    done = run_janus(2, "infer", "rows.jsonl", *OPTIONS, *options, cwd=folder, check=2)
    assert expected in done.stderr
