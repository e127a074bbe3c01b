"""The gates of all sparse layers: which experts a token goes to, with which weights.

Used on the expert side (EGate) or on the attention side (AGate), with the same bits. Knows nothing of ranks.
"""

import torch

from janus_hpc.comm.exchange import Routing
from janus_hpc.kernels.ops import Ops, PackedLinear, RouteRule
from janus_hpc.layers.source import MatrixPart, WeightSource
from janus_hpc.models.spec import ModelSpec, gate_name, score_bias_name

# Legend: N tokens, D hidden.


class Gate:
    """Routers of all sparse layers; `source` gives them in float32, whatever the model's dtype."""

    def __init__(self, spec: ModelSpec, ops: Ops, source: WeightSource) -> None:
        self.ops = ops
        self.rule = RouteRule(
            top_k=spec.moe.top_k,
            renormalize=spec.moe.renormalize,
            scale=spec.moe.scale,
            num_groups=spec.moe.num_groups,
            topk_groups=spec.moe.topk_groups,
            scoring=spec.moe.scoring,
        )
        shape = (spec.moe.num_experts, spec.hidden)
        self.routers: dict[int, PackedLinear] = {
            layer: source.linear(MatrixPart(name=gate_name(layer), shape=shape))
            for layer in spec.sparse_layers
        }
        biased = spec.sparse_layers if spec.moe.score_bias else ()
        self.biases: dict[int, torch.Tensor] = {
            layer: source.tensor(score_bias_name(layer), shape[:1], torch.float32)
            for layer in biased
        }

    def route(self, layer: int, x_ND: torch.Tensor) -> Routing:
        """The choices for x_ND on the gates' device; rows as they travel, of the row dtype or float32."""
        router = self.routers[layer]
        x_ND, bias_E = x_ND.to(router.data.device), self.biases.get(layer)
        return Routing(*self.ops.gate(x_ND, router, self.rule, bias_E))
