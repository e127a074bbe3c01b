"""Whole jobs with an FP8 checkpoint: the answers of the plain checkpoint it stands for, to the byte."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.jobs.fp8_models import save_fp8, save_plain
from tests.jobs.launcher import export_rows, export_text, run_janus, write_rows
from tests.jobs.models import VOCAB, deepseek_v3_config, greedy, save_model

NUM_NEW = 10
SPLITS = [(0, "colocated"), (3, "1a2e")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two blocks a side in many matrices and rests in all: `fp8`, and as `float32` and `bfloat16`."""
    made = tmp_path_factory.mktemp("fp8")
    config = deepseek_v3_config(
        hidden_size=150, intermediate_size=200, moe_intermediate_size=136, kv_lora_rank=140
    )
    save_model(config, made / "source")
    save_fp8(made / "source", made / "fp8")
    for dtype in (torch.float32, torch.bfloat16):
        save_plain(made / "fp8", made / str(dtype).removeprefix("torch."), dtype)
    generator = torch.Generator().manual_seed(3)
    rows = [
        {
            "prompt": torch.randint(VOCAB, (length,), generator=generator).tolist(),
            "max_tokens": NUM_NEW,
            "temperature": 0,
            "logprobs": 3,
        }
        for length in (1, 40, 7, 90, 3)
    ]
    write_rows(made / "rows.jsonl", rows)
    return made


def answers(folder: Path, model: str, dtype: str, num_ranks: int, split: str) -> Path:
    """Of a run with these, one for all tests."""
    out = folder / f"{model}-{dtype}-{num_ranks}.h5"
    if not out.exists():
        run_janus(
            num_ranks, "infer", "rows.jsonl", "--model", model, "--dtype", dtype, "--split", split,
            "--max-context", "200", "-o", out.name, cwd=folder,
        )  # fmt: skip
    return out


def test_float32_gives_the_tokens_of_transformers_with_plain_weights(folder: Path) -> None:
    peer = AutoModelForCausalLM.from_pretrained(folder / "float32", dtype=torch.float32)
    peer.set_experts_implementation("eager")
    prompts = [
        json.loads(its)["prompt"] for its in (folder / "rows.jsonl").read_text().split("\n")[:-1]
    ]
    expected = [greedy(peer.eval(), prompt, NUM_NEW)[0] for prompt in prompts]
    for num_ranks, split in SPLITS:
        rows = export_rows(answers(folder, "fp8", "float32", num_ranks, split), folder)
        assert [row["token_ids"] for row in rows] == expected


@pytest.mark.parametrize(("num_ranks", "split"), SPLITS)
@pytest.mark.parametrize(("plain", "dtype"), [("float32", "float32"), ("bfloat16", "auto")])
def test_answers_are_those_of_the_plain_checkpoint(
    folder: Path, plain: str, dtype: str, num_ranks: int, split: str
) -> None:
    """Of one rank alone; `auto` computes in bfloat16."""
    found = answers(folder, "fp8", dtype, num_ranks, split)
    wanted = answers(folder, plain, dtype, *SPLITS[0])
    assert export_text(found, folder) == export_text(wanted, folder)


def test_inspect_says_how_weights_are_stored(folder: Path) -> None:
    said = json.loads(run_janus(0, "model", "inspect", "fp8", cwd=folder).stdout)
    assert said["dtype"] == "bfloat16" and said["fp8_blocks"] == [128, 128]
    assert said["architecture"] == "DeepseekV3ForCausalLM" and said["scoring"] == "sigmoid"


def test_another_quantisation_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "fp8" / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    done = run_janus(
        0, "infer", "rows.jsonl", "--model", tmp_path, "-o", "awq.h5", cwd=folder, check=2
    )
    assert "quantization_config.quant_method" in done.stderr and "'awq'" in done.stderr
    assert "Traceback" not in done.stderr
