"""Kinds of files in a model folder: configuration, tokenizer, chat template, safetensors and their index."""

import json
import shutil
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from janus_hpc.config import RunConfig
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.prepare import run_dtype
from janus_hpc.layers.rope import rope_tables
from janus_hpc.models.make import make_model
from janus_hpc.models.registry import ignored_tensors, load_spec
from janus_hpc.models.spec import ModelSpec
from janus_hpc.planner.profile_data import shape_of
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.tokenizer import TextCodec
from janus_hpc.weights.checkpoint import Checkpoint
from janus_hpc.weights.fingerprint import fingerprint
from tests.fuzz.kinds import Kind, rewrite
from tests.fuzz.odd import Pairs, dump, mutate_bytes, mutate_tree, odd_json
from tests.fuzz.oracle import Finding

INDEX = "model.safetensors.index.json"
QWEN = {
    **{"architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "hidden_size": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2},
    **{"vocab_size": 406, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
    **{"tie_word_embeddings": True, "torch_dtype": "float32", "intermediate_size": 16},
    **{
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "norm_topk_prob": True,
    },
    **{
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "use_sliding_window": False,
        "eos_token_id": 0,
    },
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32, "beta_slow": 1},
    **{"original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 0.7},
}
DEEPSEEK = {
    **{"architectures": ["DeepseekV2ForCausalLM"], "hidden_act": "silu", "hidden_size": 16},
    **{"num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 406, "n_routed_experts": 4},
    **{
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_shared_experts": 1,
        "q_lora_rank": None,
    },
    **{"first_k_dense_replace": 1, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4},
    **{"v_head_dim": 4, "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    **{"max_position_embeddings": 128, "rms_norm_eps": 1e-6, "routed_scaling_factor": 1.0},
    **{"intermediate_size": 16, "torch_dtype": "float32", "rope_parameters": YARN},
}
TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}",
    3 * "{% for i in range(99999) %}" + 3 * "{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10**10 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=7) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}{{ ns.s }}",
    "{{ messages.__class__.__mro__ }}{{ ''.__class__ }}{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception(messages) }}{{ messages | tojson(indent=10**9) }}",
    "{{ strftime_now('%' * 5) }}{{ strftime_now(1) }}",
    "{{ '%999999999d' % 1 }}{{ '{:>999999999}'.format(1) }}",
    "{{ 'a' | center(10**10) }}",
    "{% include 'x' %}{% import 'y' as z %}{% extends 'w' %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ lipsum(n=10**6) }}",
    "{{ (range(99999) | list * 99999) | length }}",
    "{{ messages | map('upper') | sort | unique | batch(0) | list }}",
    "{{ undefined_name.x.y }}{{ messages[99] }}{{ 1 / 0 }}",
    "{% generation %}{% for i in range(99999) %}{{ i }}{% break %}{% endfor %}{% endgeneration %}",
)


def kinds(folder: Path) -> list[Kind]:
    """All of them, with their originals made below `folder`."""
    qwen, deepseek = _model(folder / "qwen", QWEN), _model(folder / "deepseek", DEEPSEEK)
    found = [
        Kind(name=f"config-{path.name}", originals=path, mutate=_config, read=_read_shape)
        for path in (qwen, deepseek)
    ]
    return [
        *found,
        Kind(
            name="generation-config",
            originals=qwen,
            mutate=partial(_json, "generation_config.json"),
            read=_read_text,
        ),
        Kind(
            name="tokenizer",
            originals=qwen,
            mutate=partial(_json, "tokenizer.json"),
            read=_read_text,
        ),
        Kind(
            name="tokenizer-config",
            originals=qwen,
            mutate=partial(_json, "tokenizer_config.json"),
            read=_read_text,
        ),
        Kind(name="chat-template", originals=qwen, mutate=_template, read=_read_text),
        Kind(name="safetensors-header", originals=qwen, mutate=_header, read=_read_weights),
        Kind(name="safetensors-index", originals=qwen, mutate=_index, read=_read_weights),
    ]


def _model(folder: Path, values: dict[str, Any]) -> Path:
    """A tiny random model with the demo's tokenizer."""
    make_model(folder, values, 0, 0.0)
    for path in demo_model_dir().iterdir():
        if "token" in path.name or path.name.startswith("generation"):
            shutil.copy(path, folder)
    return folder


def _config(rng: Random, folder: Path) -> list[Path]:
    path = folder / "config.json"
    values = json.loads(path.read_bytes())
    if rng.random() < 0.3:
        values["rope_parameters"] = YARN
    for _ in range(rng.choice((1, 1, 2))):
        changed = mutate_tree(rng, values)
        values = changed if type(changed) is dict else values
    data = dump(changed).encode("utf-8", "surrogatepass")
    return [rewrite(path, mutate_bytes(rng, data) if rng.random() < 0.15 else data)]


def _json(name: str, rng: Random, folder: Path) -> list[Path]:
    path = folder / name
    data = path.read_bytes()
    if rng.random() < 0.75:
        data = dump(mutate_tree(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    else:
        data = mutate_bytes(rng, data)
    return [rewrite(path, data)]


def _template(rng: Random, folder: Path) -> list[Path]:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_bytes())
    template = values["chat_template"]
    if rng.random() < 0.5:
        template = rng.choice(TEMPLATES)
    if rng.random() < 0.4:
        template = mutate_bytes(rng, template.encode()).decode(errors="replace")
    kind = rng.random()
    if kind < 0.4:
        return [rewrite(folder / "chat_template.jinja", template.encode())]
    listed: Any = [{"name": "default", "template": template}]
    if kind < 0.6:
        values["chat_template"] = mutate_tree(rng, listed)
        return [rewrite(path, dump(values).encode("utf-8", "surrogatepass"))]
    return [rewrite(path, json.dumps({**values, "chat_template": template}).encode())]


def _header(rng: Random, folder: Path) -> list[Path]:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.3:
        sizes = (
            0,
            1,
            size - 1,
            size + 1,
            len(data),
            2**31,
            2**63,
            2**63 - 1,
            2**64 - 1,
            100_000_001,
        )
        return [rewrite(path, struct.pack("<Q", rng.choice(sizes)) + data[8:])]
    if rng.random() < 0.2:
        return [
            rewrite(
                path,
                rng.choice(
                    (data[: rng.randrange(len(data))], data + b"x", mutate_bytes(rng, data))
                ),
            )
        ]
    text = dump(_changed_header(rng, header)).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        text = mutate_bytes(rng, text)
    return [rewrite(path, struct.pack("<Q", len(text)) + text + body)]


def _changed_header(rng: Random, header: dict[str, Any]) -> Any:
    name = rng.choice([key for key in header if key != "__metadata__"])
    its = dict(header[name])
    kind = rng.randrange(6)
    if kind == 0:
        start, end = its["data_offsets"]
        wrong = (
            [end, start],
            [start, end + 4],
            [-4, end],
            [start, 2**63],
            [0, end],
            [start + 4, end + 4],
            [start],
        )
        its["data_offsets"] = rng.choice(wrong)
    elif kind == 1:
        its["dtype"] = rng.choice(
            ("F64", "BF16", "F8_E4M3", "F4", "BOOL", "U64", "C64", "f32", "", None, 3)
        )
    elif kind == 2:
        shape = its["shape"]
        its["shape"] = rng.choice(
            (shape[::-1], [], [0], [*shape, 1], [2**62, 4], [-1, *shape[1:]], [2**32, 2**32])
        )
    elif kind == 3:
        return Pairs([*header.items(), (name, its)])
    elif kind == 4:
        return {("x" + key if key == name else key): value for key, value in header.items()}
    else:
        return mutate_tree(rng, header)
    return {**header, name: its}


def _index(rng: Random, folder: Path) -> list[Path]:
    path = folder / INDEX
    values = json.loads(path.read_bytes())
    kind = rng.random()
    if kind < 0.5:
        name = rng.choice(list(values["weight_map"]))
        files = (
            "",
            ".",
            "..",
            "/",
            "/dev/zero",
            "x" * 300,
            "a\0b",
            "../config.json",
            "config.json",
            "none",
            "a/b",
        )
        wrong: Any = rng.choice(files) if rng.random() < 0.7 else odd_json(rng)
        values["weight_map"][name] = wrong
        return [rewrite(path, dump(values).encode("utf-8", "surrogatepass"))]
    return _json(INDEX, rng, folder)


def _read_shape(folder: Path) -> None:
    """As a run does up to the placement, and as a plan with --model does."""
    spec = load_spec(folder)
    dtype = run_dtype(RunConfig(prompts="x"), spec, folder)
    shape_of(spec, dtype, 4, "x")
    load_eos_token_ids(folder)
    with Checkpoint(folder) as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
    _build(spec)


def _build(spec: ModelSpec) -> None:
    """The rotary tables are computed from the configuration alone, and spoil all answers if they are not finite."""
    for table in rope_tables(spec.rope, min(spec.max_context, 1 << 16)):
        if not bool(table.isfinite().all()):
            raise Finding(f"rotary tables are not finite: {spec.rope}")


def _read_text(folder: Path) -> None:
    codec = TextCodec.load(folder)
    load_eos_token_ids(folder)
    if codec is None:
        return
    for text in ("Sort: bread =", "caf\u00e9 \U0001f600 <|end|>", " " * 100 + "a" * 100):
        # A tokenizer that fails on a text costs the row.
        with suppress(RowRejected):
            codec.decode(codec.encode(text))
    codec.decode([0, 1, 405, 405, 17])
    with suppress(RowRejected):
        codec.encode_chat(
            [{"role": "user", "content": "27+45="}, {"role": "assistant", "content": "72"}], 128
        )


def _read_weights(folder: Path) -> None:
    spec = load_spec(folder)
    fingerprint(folder)
    with Checkpoint(folder) as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
        for name, shape in spec.all_tensors().items():
            checkpoint.read(name, shape)
