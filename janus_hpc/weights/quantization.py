"""What config.json says of quantised weights: FP8 in blocks, as DeepSeek-V3 and Qwen3 are released, or nothing.

Knows no tensor and needs no torch; the arithmetic is in `fp8`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_hpc.errors import ModelError

KEY = "quantization_config"


@dataclass(frozen=True)
class Fp8Blocks:
    """Weights are float8_e4m3fn; `rows` x `columns` of a matrix share one factor."""

    rows: int
    columns: int

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the factors of a matrix, one a block; blocks at the edges may be smaller."""
        num_rows, num_columns = shape
        return -(-num_rows // self.rows), -(-num_columns // self.columns)


def fp8_blocks(path: Path, values: Mapping[str, Any]) -> Fp8Blocks | None:
    """The blocks of a configuration; None where weights are not quantised.

    Errors: ModelError naming file, key, expected and found for any other kind of quantisation.
    """
    part = values.get(KEY)
    if part is None:
        return None
    if not isinstance(part, dict):
        raise ModelError(f"{path}: key {KEY!r}: expected an object, found {part!r}")
    method = part.get("quant_method")
    if method != "fp8":
        raise ModelError(
            f"{path}: key '{KEY}.quant_method': expected 'fp8', found {method!r}: weights of other "
            f"quantisations are not read; take the model's FP8 or unquantised release"
        )
    for key, wanted in (("fmt", "e4m3"), ("activation_scheme", "dynamic")):
        if part.get(key, wanted) != wanted:
            raise ModelError(f"{path}: key '{KEY}.{key}': expected {wanted!r}, found {part[key]!r}")
    block = part.get("weight_block_size")
    if not isinstance(block, list) or [type(its) for its in block] != [int, int] or min(block) < 1:
        raise ModelError(
            f"{path}: key '{KEY}.weight_block_size': expected two sizes such as [128, 128], "
            f"found {block!r}"
        )
    return Fp8Blocks(*block)


def read_fp8_blocks(model_dir: Path) -> Fp8Blocks | None:
    """The same of a model folder; None, too, where it has no config.json."""
    path = model_dir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    return fp8_blocks(path, values) if isinstance(values, dict) else None
