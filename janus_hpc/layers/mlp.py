"""The gated MLP of dense layers and shared experts: down(silu(gate x) * up x)."""

import torch

from janus_hpc.kernels.ops import Ops
from janus_hpc.layers.source import MatrixPart, WeightSource

# Legend: T tokens, D hidden, I inner width.


class GatedMlp:
    """x_TD in, y_TD out. `prefix` ends with a dot."""

    def __init__(
        self, prefix: str, hidden: int, width: int, ops: Ops, source: WeightSource
    ) -> None:
        self.ops = ops
        self.width = width
        self.gate_up = source.linear(
            MatrixPart(name=f"{prefix}gate_proj.weight", shape=(width, hidden)),
            MatrixPart(name=f"{prefix}up_proj.weight", shape=(width, hidden)),
        )
        self.down = source.linear(
            MatrixPart(name=f"{prefix}down_proj.weight", shape=(hidden, width))
        )

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate_TI, up_TI = self.ops.linear(x_TD, self.gate_up).split(self.width, dim=1)
        return self.ops.linear(self.ops.silu_mul(gate_TI, up_TI), self.down)
