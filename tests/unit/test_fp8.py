"""FP8 checkpoints: numbers, slices, what is read, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_hpc.kernels.torch_ops import TorchOps
from safetensors.torch import save_file

from janus_hpc.errors import ModelError
from janus_hpc.layers.source import MatrixPart, SlabSource
from janus_hpc.weights.checkpoint import Checkpoint
from janus_hpc.weights.fp8 import dequantised
from janus_hpc.weights.quantization import Fp8Blocks, fp8_blocks
from tests.jobs.fp8_models import plain, quantised

GOOD: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def save(folder: Path, tensors: dict[str, torch.Tensor], quantization: object = None) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder


@pytest.mark.parametrize("blocks", [Fp8Blocks(128, 128), Fp8Blocks(16, 48), Fp8Blocks(1, 300)])
@pytest.mark.parametrize(
    "shape", [(1, 1), (128, 128), (256, 384), (200, 300), (129, 127), (3, 500)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_is_its_value_times_the_factor_of_its_block(
    blocks: Fp8Blocks, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Of all 256 codes, NaN among them, and factors of any size."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    weight_NK = codes.view(torch.float8_e4m3fn)
    scales_nk = torch.randn(blocks.scales_shape(shape), generator=generator).exp().to(dtype)
    found_NK = dequantised(weight_NK, scales_nk, blocks)
    assert found_NK.dtype == torch.float32
    for n in range(0, shape[0], 7):
        for k in range(0, shape[1], 5):
            factor = scales_nk[n // blocks.rows, k // blocks.columns].float()
            torch.testing.assert_close(
                found_NK[n, k], weight_NK[n, k].float() * factor, rtol=0, atol=0, equal_nan=True
            )


def test_slices_may_begin_inside_a_block(tmp_path: Path) -> None:
    """As the heads of a latent key and value projection do; the matrix and its factors are read once."""
    stored_NK, scales_nk = quantised(torch.randn(300, 200), 128, 128)
    save(tmp_path, {"w": stored_NK, "w_scale_inv": scales_nk}, GOOD)
    whole_NK = plain(stored_NK, scales_nk, 128, 128).bfloat16()
    ops, bounds = TorchOps(torch.device("cpu")), [0, 5, 127, 130, 290, 300]
    with Checkpoint(tmp_path) as checkpoint:
        slab_bytes = torch.zeros(4 * whole_NK.nbytes, dtype=torch.uint8)
        source = SlabSource(ops, torch.bfloat16, slab_bytes, checkpoint)
        for start, stop in pairwise(bounds):
            part = MatrixPart(name="w", shape=(300, 200), start=start, stop=stop)
            turned = MatrixPart(name="w", shape=(300, 200), start=start, stop=stop, transpose=True)
            rows_NK = whole_NK[start:stop]
            assert torch.equal(source.linear(part).data.view(rows_NK.shape), rows_NK)
            assert torch.equal(source.linear(turned).data.view(200, -1), rows_NK.T)
        assert checkpoint.names_read == ["w", "w_scale_inv"]
        assert checkpoint.bytes_read == 300 * 200 + 4 * 3 * 2


def test_a_checkpoint_with_factors_is_whole_and_others_are_not(tmp_path: Path) -> None:
    stored_NK, scales_nk = quantised(torch.randn(130, 40), 128, 128)
    good = {"w": stored_NK, "w_scale_inv": scales_nk, "b": torch.zeros(3)}
    expected: dict[str, tuple[int, ...]] = {"w": (130, 40), "b": (3,)}
    with Checkpoint(save(tmp_path, good, GOOD)) as checkpoint:
        checkpoint.check(expected, ())
    no_factors = {"w": stored_NK, "b": good["b"]}
    cases: list[tuple[dict[str, torch.Tensor], object, str]] = [
        (no_factors, GOOD, r"w_scale_inv, the factors of w, is missing \(expected shape \[2, 1\]"),
        (good | {"w_scale_inv": torch.ones(1, 1)}, GOOD, r"shape \[1, 1\], expected \[2, 1\]"),
        (good | {"b_scale_inv": torch.ones(1, 1)}, GOOD, "unexpected tensor b_scale_inv"),
        (good | {"x_scale_inv": torch.ones(1, 1)}, GOOD, "unexpected tensor x_scale_inv"),
        (good, None, "with a quantization_config in"),
        (good | {"b": torch.zeros(3).to(torch.float8_e4m3fn)}, GOOD, "of matrices alone"),
        (
            good | {"b": torch.zeros(3, dtype=torch.int8)},
            GOOD,
            "b is stored as I8, expected one of",
        ),
        (no_factors | {"w": stored_NK.to(torch.float8_e5m2)}, GOOD, "w is stored as F8_E5M2"),
    ]
    for tensors, quantization, words in cases:
        save(tmp_path, tensors, quantization)
        with Checkpoint(tmp_path) as checkpoint, pytest.raises(ModelError, match=words):
            checkpoint.check(expected, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "gptq"}, "quant_method': expected 'fp8', found 'gptq'"),
        ({"quant_method": None}, "found None"),
        ({"fmt": "e5m2"}, "fmt': expected 'e4m3', found 'e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme': expected 'dynamic', found 'static'"),
        ({"weight_block_size": None}, r"two sizes such as \[128, 128\], found None"),
        ({"weight_block_size": [128]}, "found \\[128\\]"),
        ({"weight_block_size": [128, 0]}, "found"),
        ({"weight_block_size": [True, 128]}, "found"),
    ],
)
def test_other_quantisations_are_named(changes: dict[str, object], words: str) -> None:
    assert fp8_blocks(Path("c"), {"quantization_config": GOOD}) == Fp8Blocks(128, 128)
    assert fp8_blocks(Path("c"), {}) is None
    with pytest.raises(ModelError, match=words):
        fp8_blocks(Path("c"), {"quantization_config": GOOD | changes})
    with pytest.raises(ModelError, match="expected an object"):
        fp8_blocks(Path("c"), {"quantization_config": "fp8"})
