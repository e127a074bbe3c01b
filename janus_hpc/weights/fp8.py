"""FP8 weights back to numbers: every block of a matrix times its factor.

Knows nothing of files, nor of which tensors are stored so.
"""

import torch
from torch import Tensor

from janus_hpc.weights.quantization import Fp8Blocks

# Legend: N rows, K columns; n, k the same in blocks.

STORED = torch.float8_e4m3fn
# The factors of a tensor have its name with this behind it.
SCALES_SUFFIX = "_scale_inv"


def dequantised(weight_NK: Tensor, scales_nk: Tensor, blocks: Fp8Blocks) -> Tensor:
    """float32 in new memory: one rounding a product, as in DeepSeek-V3's reference (inference/kernel.py).

    `scales_nk` has the shape `blocks.scales_shape` says, in any floating dtype.
    """
    num_columns = weight_NK.shape[1]
    out_NK = weight_NK.float()
    for row_n, rows_NK in enumerate(out_NK.split(blocks.rows)):
        factors_K = scales_nk[row_n].float().repeat_interleave(blocks.columns)
        rows_NK.mul_(factors_K[:num_columns])
    return out_NK
