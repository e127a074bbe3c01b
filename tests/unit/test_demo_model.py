"""The demo model's folder: its size and shape, its tokenizer, and the trainer's net as a reference
implementation sees it.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from janus_hpc.demo import demo_model_dir

JOBS = Path(__file__).resolve().parents[2] / "jobs"
MAX_FOLDER_BYTES = 10_000_000


@pytest.fixture(scope="module")
def jobs() -> Iterator[None]:
    """Makes the scripts under jobs/ importable as they import one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(JOBS))
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer as it is shipped."""
    return Tokenizer.from_file(str(demo_model_dir() / "tokenizer.json"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The shipped config.json."""
    content = json.loads((demo_model_dir() / "config.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_folder_is_small_and_has_the_shape(config: dict[str, Any]) -> None:
    files = [path for path in demo_model_dir().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_FOLDER_BYTES
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["num_experts"] >= 32
    assert config["num_experts_per_tok"] == 4
    assert config["norm_topk_prob"] is True


def test_shards_hold_what_the_index_says() -> None:
    text = (demo_model_dir() / "model.safetensors.index.json").read_text(encoding="utf-8")
    index = json.loads(text)
    found: dict[str, str] = {}
    num_bytes = 0
    for path in sorted(demo_model_dir().glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                found[name] = path.name
                num_bytes += shard.get_tensor(name).nbytes
    assert len(set(found.values())) >= 2
    assert found == index["weight_map"]
    assert num_bytes == index["metadata"]["total_size"]


def test_shipped_tokenizer_is_the_built_one(
    jobs: None, tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    built = importlib.import_module("demo_tokenizer").build_tokenizer()
    assert built.to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_letters_and_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    for text in ("2718+281=", "camelunicorn", "BREAD"):
        assert len(tokenizer.encode(text).ids) == len(text)
    assert tokenizer.encode("Monday, May =").tokens == ["Monday", ",\u0120", "May", "\u0120="]


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_chat_template_gives_the_training_format(jobs: None, tokenizer: Tokenizer) -> None:
    settings_text = (demo_model_dir() / "tokenizer_config.json").read_text(encoding="utf-8")
    template = ImmutableSandboxedEnvironment().from_string(
        json.loads(settings_text)["chat_template"]
    )
    maker = importlib.import_module("demo_batches").BatchMaker(tokenizer, 0, 1, 64)
    for content in ("12+34=", [{"type": "text", "text": "12+34="}]):
        text = template.render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
        assert tokenizer.encode(text, add_special_tokens=False).ids == maker.chat_prompt("12+34=")


def test_exported_net_is_what_transformers_computes(jobs: None, tmp_path: Path) -> None:
    net_module = importlib.import_module("demo_net")
    torch.manual_seed(2)
    vocab_size = importlib.import_module("demo_tokenizer").build_tokenizer().get_vocab_size()
    net = net_module.Net(net_module.NetConfig(vocab_size=vocab_size, num_layers=2))
    importlib.import_module("demo_export").export(net, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(6, vocab_size, (3, 17))
    mask = torch.ones(17, 17, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
        got = net.logits(net(ids, mask)[0])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_grouped_experts_have_the_right_gradients(jobs: None) -> None:
    grouped: Any = importlib.import_module("demo_net").GroupedExperts.apply
    torch.manual_seed(1)
    x_ND, up_E2FD = torch.randn(7, 5).double(), torch.randn(4, 6, 5).double()
    down_EDF, gate_NK = torch.randn(4, 5, 3).double(), torch.rand(7, 2).double()
    ids_NK = torch.tensor([[0, 2], [2, 0], [0, 1], [1, 2], [2, 1], [0, 2], [1, 0]])
    floats = [t.requires_grad_() for t in (x_ND, up_E2FD, down_EDF, gate_NK)]

    def run(x: Any, up: Any, down: Any, gate: Any) -> Any:
        return grouped(x, up, down, ids_NK, gate)

    assert torch.autograd.gradcheck(run, floats)


def held_out_sample(every: int) -> list[tuple[dict[str, Any], str]]:
    """Return every so many held-out rows with their answers."""
    rows = (JOBS / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[::every]
    answers = (JOBS / "heldout_answers.jsonl").read_text(encoding="utf-8").splitlines()[::every]
    pairs = zip(map(json.loads, rows), map(json.loads, answers), strict=True)
    return [(row, answer["answer"]) for row, answer in pairs]


def test_transformers_answers_held_out_prompts() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model_dir(), padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)
    sample = held_out_sample(every=8)
    texts = [
        row.get("prompt")
        or tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        for row, _ in sample
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    output = model.generate(**batch, max_new_tokens=16, do_sample=False)
    replies = tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = sum(reply == answer for reply, (_, answer) in zip(replies, sample, strict=True))
    assert right / len(sample) >= 0.95
