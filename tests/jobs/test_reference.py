"""Whole jobs against transformers: the same greedy tokens, log probabilities within 1e-4, on every split."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.jobs.launcher import export_rows, export_text, run_janus, write_rows
from tests.jobs.models import VOCAB, greedy, save_model, variants

NUM_NEW = 12
SPLITS = [
    (0, "colocated"),
    (3, "colocated"),
    (2, "1a1e"),
    (5, "2a3e"),
    (4, "3a1e"),
    (5, "1a4e"),
]


@pytest.fixture(scope="module", params=sorted(variants()))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model folder, rows of very uneven length, and transformers' answers."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(variants()[request.param], folder / "model")
    generator = random.Random(7)
    lengths = [1, 2, 150, 3, 40, 17, 90, 5, 1, 60, 33, 8, 120, 16]
    prompts = [[generator.randrange(VOCAB) for _ in range(n)] for n in lengths]
    rows = [
        {"prompt": ids, "max_tokens": NUM_NEW, "temperature": 0, "logprobs": 5} for ids in prompts
    ]
    write_rows(folder / "rows.jsonl", rows)
    return folder, [greedy(model, ids, NUM_NEW) for ids in prompts]


@pytest.mark.parametrize(("num_ranks", "split"), SPLITS)
def test_tokens_and_logprobs_equal_transformers(case: Any, num_ranks: int, split: str) -> None:
    """Few blocks (preemption), few places (queueing) and a small step (chunked prefill) at once."""
    folder, expected = case
    out = folder / f"{split}-{num_ranks}.h5"
    options = ["--max-sequences", "4", "--max-step-tokens", "24", "--block-size", "8"]
    options += ["--kv-memory", "300KB", "--max-context", "200"]
    run_janus(
        num_ranks, "infer", "rows.jsonl", "--model", "model", "-o", out.name, "--split", split,
        *options, cwd=folder,
    )  # fmt: skip
    rows = export_rows(out, folder)
    assert [row["index"] for row in rows] == list(range(len(expected)))
    for row, (tokens, logits_NV) in zip(rows, expected, strict=True):
        assert row["token_ids"] == tokens, f"row {row['index']}"
        _check_logprobs(row, logits_NV)


def test_rows_are_byte_equal_on_every_split(case: Any) -> None:
    """Exported rows, log probabilities included, are the same bytes whatever the split."""
    folder, _ = case
    texts = {path.stem: export_text(path, folder) for path in sorted(Path(folder).glob("*.h5"))}
    assert len(texts) == len(SPLITS)
    assert len(set(texts.values())) == 1, f"{[(name, hash(text)) for name, text in texts.items()]}"


def _check_logprobs(row: dict[str, Any], logits_NV: torch.Tensor) -> None:
    expected_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    for position, found in enumerate(row["logprobs"]):
        for token_id, logprob in zip(found["top_ids"], found["top_logprobs"], strict=True):
            assert abs(logprob - float(expected_NV[position, token_id])) < 1e-4
