"""Tokenizer, chat templates and end-of-text ids of a model folder against transformers."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from janus_hpc.core import Row, SamplingParams
from janus_hpc.errors import ModelError
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.prompt import prompt_ids
from janus_hpc.sampling.tokenizer import TextCodec

transformers = pytest.importorskip("transformers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "user assistant system You are a helpful assistant.",
    "caf\u00e9 na\u00efve \u4f60\u597d \U0001f600 1234567890\n\n",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
    "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ALTERNATING = """{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] | trim }} [/INST]
    {% else %}
        {% generation %}
{{ message['content'] }}{{ eos_token }}
        {% endgeneration %}
    {% endif %}
    {% if loop.index0 > 20 %}{% break %}{% endif %}
{% endfor %}"""
WITH_JSON = """{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}
{{ ns.n }} {{ m | tojson }} {{ m.get('name', 'none') }}{% endfor %}
{{ {'b': '<&>', 'a': tools is none} | tojson(indent=2, sort_keys=true) }}
{{ unk_token | default('no unk') }}"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello <|im_end|> \u4f60\u597d <b>'"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " quick fox \n"}],
    [
        {"role": "user", "content": "dog", "name": None},
        {"role": "assistant", "content": "<think>lazy</think>\n\nfox"},
        {"role": "user", "content": "brown"},
    ],
]


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_folder(
    folder: Path, tokenizer: Tokenizer | None = None, template: Any = None, **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (tokenizer or build_tokenizer()).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 1000000000000000019884624838656,
        **config,
    }
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path) -> TextCodec:
    codec = TextCodec.load(folder)
    assert codec is not None
    return codec


def template_processor(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_encode_equals_auto_tokenizer(
    tmp_path: Path, processor: bool, config: dict[str, Any]
) -> None:
    tokenizer = build_tokenizer()
    if processor:
        tokenizer.post_processor = template_processor(tokenizer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_id=1, pad_token="</s>")
    folder = write_folder(tmp_path, tokenizer, **config)
    codec, reference = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ["", "The quick", "<|im_start|>user\n\u4f60", *CORPUS]:
        assert codec.encode(text) == reference(text).input_ids
        ids = reference(text).input_ids
        assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        assert codec.decode(ids, skip_special_tokens=False) == reference.decode(ids)
    assert codec.vocab_size == len(reference)


def test_tokens_named_only_in_the_config_become_special(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    new_id = tokenizer.get_vocab_size()
    added = {
        str(new_id): {
            "content": "<|tool|>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": False,
        }
    }
    eos = {"__type": "AddedToken", "content": "<|done|>", "special": True}
    folder = write_folder(tmp_path, tokenizer, added_tokens_decoder=added, eos_token=eos)
    codec, reference = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = "fox<|tool|>dog<|done|>"
    ids = codec.encode(text)
    assert ids == reference(text).input_ids and new_id in ids
    assert codec.eos_token_ids == [reference.eos_token_id] == [ids[-1]]
    assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True) == "fox<|tool|>dog"


@pytest.mark.parametrize("template", [CHATML, DEEPSEEK, ALTERNATING, WITH_JSON])
@pytest.mark.parametrize("messages", CHATS)
def test_chat_equals_apply_chat_template(
    tmp_path: Path, template: str, messages: list[dict[str, Any]]
) -> None:
    folder = write_folder(tmp_path, template=template)
    codec, reference = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    try:
        wanted = reference.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    except Exception as error:
        with pytest.raises(RowRejected, match="alternate") as caught:
            codec.encode_chat(messages)
        assert "alternate" in str(error) and caught.value.field == "messages"
        return
    assert codec.encode_chat(messages) == wanted


def test_template_file_and_named_templates(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "fox"}]
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "dog"}]
    codec = load(write_folder(tmp_path, template=named))
    assert codec.decode(codec.encode_chat(message)) == "dog"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }} jumps\n")
    codec = load(tmp_path)
    assert codec.decode(codec.encode_chat(message)) == "fox jumps"


def test_content_parts_are_joined_and_images_refused(tmp_path: Path) -> None:
    codec = load(write_folder(tmp_path, template="{{ messages[0].content }}"))
    parts = [{"type": "text", "text": "quick"}, {"type": "text", "text": "fox"}]
    assert codec.decode(codec.encode_chat([{"role": "user", "content": parts}])) == "quick\nfox"
    parts.append({"type": "image_url", "image_url": "x"})
    with pytest.raises(RowRejected, match="image_url"):
        codec.encode_chat([{"role": "user", "content": parts}])


DOUBLING = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        ("{% for %}", "cannot be compiled"),
        ("{{ messages[0].content + 1 }}", "refuses"),
        ("{{ messages[0].missing.deeper }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "cannot be compiled"),
        ("{% for i in range(10**9) %}x{% endfor %}", "refuses"),
        ("{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3, "steps"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "st",
        ),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "refuses"),
        ("{{ 10 ** (10 ** 9) }}", "bits"),
        ("{{ 'a' * 10**9 }}", "characters"),
        ("{{ [1] * 10**9 }}", "characters or items"),
        (DOUBLING.replace("+", "~"), "characters"),
        (DOUBLING, "characters"),
        ("{{ 'a' | center(99999999) }}{{ 1 | batch(10**9) }}", "a number beyond"),
        ("{{ 'a'.ljust(99999999) }}", "a number beyond"),
        ("{{ '%99999999d' % 1 }}", "width"),
        ("{{ '{:>99999999}'.format(1) }}", "width"),
        ("{{ '{:>{w}}'.format(1, w=99999999) }}", "a number beyond"),
    ],
)
def test_template_trouble_is_the_rows_error(
    tmp_path: Path, template: str | None, reason: str
) -> None:
    codec = load(write_folder(tmp_path, template=template))
    with pytest.raises(RowRejected, match=reason) as caught:
        codec.encode_chat([{"role": "user", "content": "x"}])
    assert caught.value.field == "messages"
    assert codec.encode("fox")


def test_date_of_a_template_can_be_fixed(tmp_path: Path) -> None:
    write_folder(tmp_path, template="{{ strftime_now('%Y-%m-%d') }}")
    codec = TextCodec.load(tmp_path, now=lambda: datetime(2024, 2, 29))
    assert codec is not None
    assert codec.decode(codec.encode_chat([{"role": "user", "content": ""}])) == "2024-02-29"


def test_broken_files_are_named(tmp_path: Path) -> None:
    assert TextCodec.load(tmp_path) is None
    write_folder(tmp_path)
    for name, content in [
        ("tokenizer_config.json", "[1]"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer.json", ""),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(ModelError, match=name):
            TextCodec.load(tmp_path)
        write_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TextCodec.load(tmp_path)


def test_eos_ids(tmp_path: Path) -> None:
    def write(name: str, value: Any) -> None:
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))

    assert load_eos_token_ids(tmp_path) == []
    write("config.json", 9)
    assert load_eos_token_ids(tmp_path) == [9]
    write("generation_config.json", [30, 8])
    assert load_eos_token_ids(tmp_path) == [8, 30]
    assert load(write_folder(tmp_path)).eos_token_ids == [1, 8, 30]
    write("generation_config.json", "x")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_eos_token_ids(tmp_path)


def make_row(params: SamplingParams | None = None, **prompt: Any) -> Row:
    return Row(
        index=0, line=1, id="0", explicit_id=False, params=params or SamplingParams(), **prompt
    )


def test_prompt_ids(tmp_path: Path) -> None:
    codec = load(write_folder(tmp_path, template=DEEPSEEK))
    assert prompt_ids(make_row(text="fox"), codec, 500, 99) == codec.encode("fox")
    messages = [{"role": "user", "content": "fox"}]
    assert prompt_ids(make_row(messages=messages), codec, 500, 99) == codec.encode_chat(messages)
    assert prompt_ids(make_row(token_ids=[4, 499]), None, 500, 3) == [4, 499]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (make_row(text="fox"), "prompt", "tokenizer.json"),
        (make_row(messages=[{}]), "messages", "tokenizer.json"),
        (make_row(token_ids=[]), "prompt", "empty"),
        (make_row(token_ids=[1, 2, 3]), "prompt", "at most 2 tokens"),
        (make_row(token_ids=[1, 500]), "prompt", "got 500"),
        (make_row(token_ids=[-1]), "prompt", "got -1"),
        (make_row(SamplingParams(stop=["x"]), token_ids=[1]), "stop", "tokenizer.json"),
        (make_row(SamplingParams(logit_bias={500: 1.0}), token_ids=[1]), "logit_bias", "got 500"),
        (make_row(SamplingParams(stop_token_ids=[501]), token_ids=[1]), "stop_token_ids", "501"),
    ],
)
def test_rows_the_model_cannot_run(row: Row, field: str, reason: str) -> None:
    with pytest.raises(RowRejected, match=reason) as caught:
        prompt_ids(row, None, 500, 3)
    assert caught.value.field == field


def test_a_text_far_too_long_is_refused_by_its_start(tmp_path: Path) -> None:
    """Tokenising all of it takes longer than any test: the time grows with the square of a word's length."""
    codec = load(write_folder(tmp_path, template="{{ messages[0].content }}"))
    text = "fox" * (1 << 24)
    for row in (make_row(text=text), make_row(messages=[{"role": "user", "content": text}])):
        with pytest.raises(RowRejected, match=r"expected at most 98 tokens.* got more than"):
            prompt_ids(row, codec, 500, 99)


def test_a_long_text_that_fits_is_tokenised_whole(tmp_path: Path) -> None:
    codec = load(write_folder(tmp_path))
    text = " fox" * 200
    num_tokens = len(codec.encode(text))
    assert len(text) < 16 * num_tokens
    for most in (num_tokens + 1, num_tokens * 9):
        assert prompt_ids(make_row(text=text), codec, 500, most) == codec.encode(text)
    with pytest.raises(RowRejected, match=f"got {num_tokens}$"):
        prompt_ids(make_row(text=text), codec, 500, num_tokens)


def test_named_templates_with_odd_names(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    named = [{"name": ["x"], "template": "a"}, {"name": "default", "template": "fox"}]
    path.write_text(json.dumps({**values, "chat_template": named}))
    codec = load(tmp_path)
    assert codec.decode(codec.encode_chat([{"role": "user", "content": ""}])) == "fox"
