"""Whole jobs with steps cut into microbatches and the gate on either side: the same bytes as one rank alone."""

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.jobs.launcher import export_text, run_janus, write_rows
from tests.jobs.models import VOCAB, save_model, variants

# Few places and a small step: chunks of prompts are cut between microbatches, and microbatches are empty.
OPTIONS = ["--model", "model", "--max-sequences", "4", "--max-step-tokens", "13"]
OPTIONS += ["--block-size", "8", "--kv-memory", "300KB", "--max-context", "100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with shared experts and groups, rows of uneven length, and one rank's answers."""
    folder = tmp_path_factory.mktemp("microbatches")
    save_model(variants()["deepseek"], folder / "model")
    generator = random.Random(3)
    lengths = [1, 2, 50, 3, 31, 17, 5, 1, 26]
    prompts = [[generator.randrange(VOCAB) for _ in range(n)] for n in lengths]
    rows = [{"prompt": ids, "max_tokens": 9, "temperature": 0.7, "logprobs": 3} for ids in prompts]
    write_rows(folder / "rows.jsonl", rows)
    run_janus(0, "infer", "rows.jsonl", *OPTIONS, "-o", "alone.h5", cwd=folder)
    (folder / "alone.jsonl").write_text(export_text(folder / "alone.h5", folder))
    return folder


@pytest.mark.parametrize(
    ("num_ranks", "split", "microbatches", "gate"),
    [
        (2, "1a1e", "1", "egate"),
        (2, "1a1e", "2", "egate"),
        (2, "1a1e", "3", "agate"),
        (4, "2a2e", "1", "agate"),
        (4, "2a2e", "2", "agate"),
        (4, "2a2e", "3", "egate"),
        (3, "1a2e", "4", "egate"),
        (3, "1a2e", "auto", "agate"),
        (2, "colocated", "2", "agate"),
    ],
)
def test_rows_are_byte_equal(
    folder: Path, num_ranks: int, split: str, microbatches: str, gate: str
) -> None:
    out = f"{split}-{microbatches}-{gate}.h5"
    options = [*OPTIONS, "--split", split, "--microbatches", microbatches, "--gate", gate]
    run_janus(num_ranks, "infer", "rows.jsonl", *options, "-o", out, cwd=folder)
    assert export_text(folder / out, folder) == (folder / "alone.jsonl").read_text()
    with h5py.File(folder / out) as found, h5py.File(folder / "alone.h5") as alone:
        check_attributes(found, split, microbatches, gate)
        check_activity(found, alone, gate)


def check_attributes(found: h5py.File, split: str, microbatches: str, gate: str) -> None:
    """What was taken and why is in the results."""
    assert found.attrs["gate"] == gate
    number, why = int(found.attrs["microbatches"]), found.attrs["microbatches_why"]
    if split == "colocated":
        assert number == 1 and "colocated" in why and "2 asked for" in why
    elif microbatches == "auto":
        assert 1 <= number <= 4 and why.startswith("measured ms a layer")
    else:
        assert number == int(microbatches) and why == "asked for"


def check_activity(found: h5py.File, alone: h5py.File, gate: str) -> None:
    """Every token that was computed chose its experts once; without preemption that is the same everywhere."""
    tokens_LE = found["layers/expert_activations"][:]
    assert len(set(tokens_LE.sum(axis=1).tolist())) == 1, "all layers see all tokens"
    if gate == "agate":
        assert np.isnan(found["layers/a_max_mean"][:]).all()
    else:
        assert (found["layers/a_max_mean"][:] <= found["layers/a_max_max"][:]).all()
    assert (found["layers/a_max_max"][:] >= 1).all()
    assert tokens_LE.sum() >= alone["layers/expert_activations"][:].sum() * 0.9


def test_a_wrong_number_is_refused(folder: Path) -> None:
    done = run_janus(0, "infer", "rows.jsonl", "--microbatches", "5", cwd=folder, check=2)
    assert "--microbatches" in done.stderr
    (folder / "job.toml").write_text('prompts = "rows.jsonl"\nmicrobatches = 5\n')
    done = run_janus(0, "infer", "--job", "job.toml", cwd=folder, check=2)
    assert "key 'microbatches'" in done.stderr and "auto, 1, 2, 3, 4" in done.stderr
