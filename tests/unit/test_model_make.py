"""`janus-hpc model make`: a folder that loads, with routing as skewed as was asked for."""

from math import prod
from pathlib import Path

import pytest
import torch

from janus_hpc.errors import UsageError
from janus_hpc.models import make
from janus_hpc.models.make import make_model
from janus_hpc.models.registry import ignored_tensors, load_spec
from janus_hpc.models.shapes import shape_config
from janus_hpc.models.spec import gate_name, score_bias_name
from janus_hpc.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_a_made_model_is_whole_and_routes_as_asked(
    tmp_path: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "SHARD_BYTES", 1_000_000)  # several shards
    num_weights = make_model(tmp_path / "m", shape_config("moe-3m"), 0, skew)
    spec = load_spec(tmp_path / "m")
    assert num_weights == spec.num_attention_params() + spec.num_expert_params() + 3 * 32 * 96
    with Checkpoint(tmp_path / "m") as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
        embedding_VD = checkpoint.read("model.embed_tokens.weight", (spec.vocab, spec.hidden))
        gate_ED = checkpoint.read(gate_name(1), (32, spec.hidden))
    x_VD = embedding_VD / embedding_VD.pow(2).mean(dim=1, keepdim=True).sqrt()
    ids_VK = (x_VD @ gate_ED.T).topk(4, dim=1).indices
    share_E = torch.bincount(ids_VK.flatten(), minlength=32).sort().values / ids_VK.numel()
    busiest = float(share_E[-8:].sum())
    assert (busiest > 0.6) if skew else (busiest < 0.45)


def test_the_likeness_of_an_fp8_release_is_whole_and_plain(tmp_path: Path) -> None:
    block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    values = shape_config("deepseek-v3-2m") | {"quantization_config": block}
    num_weights = make_model(tmp_path / "m", values, 0, 0.0)
    spec = load_spec(tmp_path / "m")
    assert num_weights == sum(map(prod, spec.all_tensors().values()))
    with Checkpoint(tmp_path / "m") as checkpoint:
        checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
        assert checkpoint.read(score_bias_name(1), (32,)).dtype == torch.bfloat16
    assert "quantization_config" not in (tmp_path / "m" / "config.json").read_text()


def test_a_folder_with_a_model_is_left_alone(tmp_path: Path) -> None:
    make_model(tmp_path / "m", shape_config("moe-3m"), 0, 0.0)
    with pytest.raises(UsageError, match="holds a model"):
        make_model(tmp_path / "m", shape_config("moe-3m"), 1, 0.0)
