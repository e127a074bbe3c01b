"""The gates of all sparse layers: which experts a token goes to, with which weights.

Used on the expert side (EGate) or on the attention side (AGate), with the same bits. Knows nothing of ranks.
"""

import torch

from janus_hpc.comm.exchange import Routing
from janus_hpc.kernels.ops import Ops, PackedLinear
from janus_hpc.layers.source import MatrixPart, WeightSource
from janus_hpc.models.spec import ModelSpec, gate_name

# Legend: N tokens, D hidden.


class Gate:
    """Routers of all sparse layers; `source` gives them in float32, whatever the model's dtype."""

    def __init__(self, spec: ModelSpec, ops: Ops, source: WeightSource) -> None:
        self.moe = spec.moe
        self.ops = ops
        shape = (spec.moe.num_experts, spec.hidden)
        self.routers: dict[int, PackedLinear] = {
            layer: source.linear(MatrixPart(name=gate_name(layer), shape=shape))
            for layer in spec.sparse_layers
        }

    def route(self, layer: int, x_ND: torch.Tensor) -> Routing:
        """The choices for x_ND on the gates' device; rows as they travel, of the row dtype or float32."""
        router, moe = self.routers[layer], self.moe
        logits_NE = self.ops.linear(x_ND.to(router.data.device, torch.float32), router)
        ids_NK, weights_NK = self.ops.route_softmax_topk(
            logits_NE,
            moe.top_k,
            moe.renormalize,
            moe.scale,
            num_groups=moe.num_groups,
            topk_groups=moe.topk_groups,
        )
        return Routing(ids_NK, weights_NK)
