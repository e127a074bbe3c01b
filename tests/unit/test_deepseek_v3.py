"""The spec of DeepSeek-V3's published configuration, against transformers' model of it and the paper's figures."""

from math import log, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from janus_hpc.errors import ModelError
from janus_hpc.layers.rope import rope_tables
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import ignored_tensors, spec_of
from janus_hpc.models.shapes import shape_config
from janus_hpc.models.spec import MlaSpec, ModelSpec

PUBLISHED = shape_config("deepseek-v3")
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def spec_with(**changes: Any) -> ModelSpec:
    return spec_of(ConfigFile(Path("config.json"), PUBLISHED | changes))


@pytest.fixture(scope="module")
def peer() -> Any:
    """transformers' model of the same configuration, without memory."""
    with torch.device("meta"):
        return DeepseekV3ForCausalLM(DeepseekV3Config(**PUBLISHED))


def test_tensors_are_those_of_transformers(peer: Any) -> None:
    spec = spec_with()
    shapes = {name: tuple(its.shape) for name, its in peer.state_dict().items()}
    routed = {name for name in shapes if ".mlp.experts." in name}
    assert spec.attention_tensors() | spec.gate_tensors() == {
        name: shape for name, shape in shapes.items() if name not in routed
    }
    assert sum(prod(shapes[name]) for name in routed) == spec.num_expert_params()
    # 671 billion parameters (arXiv 2412.19437, section 4.2), the layer for multi-token prediction apart.
    assert sum(map(prod, shapes.values())) == pytest.approx(671e9, rel=1e-3)


def test_softmax_scale_and_rotary_tables_are_those_of_transformers(peer: Any) -> None:
    spec = spec_with()
    assert isinstance(spec.attention, MlaSpec)
    assert spec.attention.scale == pytest.approx(peer.model.layers[0].self_attn.scaling, rel=1e-12)
    assert spec.attention.scale == pytest.approx(192**-0.5 * (0.1 * log(40) + 1) ** 2, rel=1e-12)
    rotary = type(peer.model.rotary_emb)(DeepseekV3Config(**PUBLISHED))
    positions = torch.arange(5000).unsqueeze(0)
    cos_P, sin_P = (its[0, :, :32] for its in rotary(torch.zeros(1), positions))
    for found, wanted in zip(rope_tables(spec.rope, 5000), (cos_P, sin_P), strict=True):
        # Frequencies may differ in their last bit, which 5000 positions make 3e-4.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_routing_and_what_a_checkpoint_may_carry() -> None:
    spec = spec_with()
    moe = spec.moe
    assert (moe.scoring, moe.score_bias, moe.renormalize, moe.scale) == ("sigmoid", True, True, 2.5)
    assert (moe.num_groups, moe.topk_groups, moe.top_k) == (8, 4, 8)
    assert spec.sparse_layers == tuple(range(3, 61))
    assert "model.layers.61.*" in ignored_tensors(spec)
    assert not any(
        "layers" in its for its in ignored_tensors(spec_with(num_nextn_predict_layers=0))
    )


def test_an_fp8_release_is_computed_with_in_bfloat16() -> None:
    assert (
        spec_with(quantization_config=FP8, torch_dtype="float8_e4m3fn").stored_dtype == "bfloat16"
    )
    assert spec_with(torch_dtype="float32").stored_dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"n_group": None}, "'n_group' is missing"),
        ({"n_group": 7}, "groups of at least 2 of n_routed_experts = 256, found 7"),
        ({"n_group": 256}, "groups of at least 2"),
        ({"topk_group": 9}, "topk_group"),
        ({"n_group": 64, "topk_group": 1}, "topk_group': expected groups that hold"),
        ({"routed_scaling_factor": None}, "routed_scaling_factor"),
        ({"quantization_config": {"quant_method": "awq"}}, "found 'awq'"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        spec_with(**changes)
