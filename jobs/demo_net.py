"""Qwen3-MoE's forward pass, written for training a small one on a CPU in float32.

Owns the parameters and their names in the hub's format; knows nothing of the corpus or of files.
Legend: B packed rows, T positions, N = B * T tokens, D hidden, H heads, E experts, K experts a
token, R = N * K routed rows, F expert width, A head width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """The shape of the demo model; every layer is sparse and the head is tied to the embedding."""

    vocab_size: int
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 32
    num_experts_per_tok: int = 4
    expert_size: int = 32
    max_positions: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6


class GroupedExperts(torch.autograd.Function):
    """All experts' gated MLPs over rows sorted by expert: one product each, sums in fixed order."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, up_E2FD: Tensor, down_EDF: Tensor, ids_NK: Tensor, gate_NK: Tensor
    ) -> Tensor:
        """Return the weighted sum (N, D) of the chosen experts' outputs."""
        num_tokens, num_chosen = ids_NK.shape
        order_R = torch.argsort(ids_NK.reshape(-1), stable=True)
        counts = torch.bincount(ids_NK.reshape(-1), minlength=len(up_E2FD)).tolist()
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(len(order_R))
        x_RD = x_ND.index_select(0, order_R // num_chosen)
        gate_R = gate_NK.reshape(-1)[order_R].unsqueeze(1)
        hidden_R2F = x_RD.new_empty(len(x_RD), up_E2FD.shape[1])
        for x_rows, h_rows, up in zip(
            x_RD.split_with_sizes(counts), hidden_R2F.split_with_sizes(counts), up_E2FD, strict=True
        ):
            torch.mm(x_rows, up.T, out=h_rows)
        left_RF, right_RF = hidden_R2F.chunk(2, dim=1)
        act_RF = F.silu(left_RF) * right_RF
        scaled_RF = act_RF * gate_R
        y_RD = torch.empty_like(x_RD)
        for a_rows, y_rows, down in zip(
            scaled_RF.split_with_sizes(counts), y_RD.split_with_sizes(counts), down_EDF, strict=True
        ):
            torch.mm(a_rows, down.T, out=y_rows)
        ctx.save_for_backward(
            x_RD, hidden_R2F, act_RF, scaled_RF, gate_R, up_E2FD, down_EDF, order_R, place_R
        )
        ctx.counts = counts
        ctx.num_chosen = num_chosen
        return y_RD.index_select(0, place_R).view(num_tokens, num_chosen, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, both expert matrices and the gate weights."""
        x_RD, hidden_R2F, act_RF, scaled_RF, gate_R, up_E2FD, down_EDF, order_R, place_R = (
            ctx.saved_tensors
        )
        dy_RD = grads[0].index_select(0, order_R // ctx.num_chosen)
        d_scaled_RF = torch.empty_like(scaled_RF)
        d_down_EDF = torch.empty_like(down_EDF)
        parts = zip(
            dy_RD.split_with_sizes(ctx.counts),
            scaled_RF.split_with_sizes(ctx.counts),
            d_scaled_RF.split_with_sizes(ctx.counts),
            strict=True,
        )
        for e, (dy_rows, a_rows, da_rows) in enumerate(parts):
            torch.mm(dy_rows, down_EDF[e], out=da_rows)
            torch.mm(dy_rows.T, a_rows, out=d_down_EDF[e])
        d_gate_R = (d_scaled_RF * act_RF).sum(1)
        d_act_RF = d_scaled_RF.mul_(gate_R)
        left_RF, right_RF = hidden_R2F.chunk(2, dim=1)
        sig_RF = torch.sigmoid(left_RF)
        d_left_RF = d_act_RF * right_RF * sig_RF * (1 + left_RF * (1 - sig_RF))
        d_hidden_R2F = torch.cat((d_left_RF, d_act_RF * left_RF * sig_RF), dim=1)
        d_up_E2FD = torch.empty_like(up_E2FD)
        dx_RD = torch.empty_like(x_RD)
        parts = zip(
            d_hidden_R2F.split_with_sizes(ctx.counts),
            x_RD.split_with_sizes(ctx.counts),
            dx_RD.split_with_sizes(ctx.counts),
            strict=True,
        )
        for e, (dh_rows, x_rows, dx_rows) in enumerate(parts):
            torch.mm(dh_rows, up_E2FD[e], out=dx_rows)
            torch.mm(dh_rows.T, x_rows, out=d_up_E2FD[e])
        dx_ND = dx_RD.index_select(0, place_R).view(-1, ctx.num_chosen, dx_RD.shape[1]).sum(1)
        return dx_ND, d_up_E2FD, d_down_EDF, None, d_gate_R[place_R].view(-1, ctx.num_chosen)


def weight(*shape: int, std: float) -> nn.Parameter:
    """Return a normally distributed parameter."""
    return nn.Parameter(torch.randn(*shape) * std)


class Layer(nn.Module):
    """One decoder layer: grouped-query attention with q/k norms, then a sparse MLP."""

    def __init__(self, cfg: NetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width, out_std = cfg.hidden_size, 1 / math.sqrt(2 * cfg.num_layers)
        q_size, kv_size = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
        self.qkv = weight(q_size + 2 * kv_size, width, std=width**-0.5)
        self.out = weight(width, q_size, std=out_std * q_size**-0.5)
        self.q_norm = nn.Parameter(torch.ones(cfg.head_dim))
        self.k_norm = nn.Parameter(torch.ones(cfg.head_dim))
        self.attn_norm = nn.Parameter(torch.ones(width))
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.router = weight(cfg.num_experts, width, std=width**-0.5)
        self.up = weight(cfg.num_experts, 2 * cfg.expert_size, width, std=width**-0.5)
        self.down = weight(
            cfg.num_experts, width, cfg.expert_size, std=out_std * cfg.expert_size**-0.5
        )

    def attend(self, x_BTD: Tensor, cos_TA: Tensor, sin_TA: Tensor, mask: Tensor) -> Tensor:
        """Return attention's output (B, T, D); `mask` (B, 1, T, T) is True where a key is seen."""
        cfg = self.cfg
        num_rows, length, _ = x_BTD.shape
        qkv = F.linear(x_BTD, self.qkv).view(num_rows, length, -1, cfg.head_dim).transpose(1, 2)
        q, k, v = qkv.split_with_sizes((cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads), dim=1)
        q = rotate(rms_norm(q, self.q_norm, cfg.norm_eps), cos_TA, sin_TA)
        k = rotate(rms_norm(k, self.k_norm, cfg.norm_eps), cos_TA, sin_TA)
        group = cfg.num_heads // cfg.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.linear(y.transpose(1, 2).reshape(num_rows, length, -1), self.out)

    def experts(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sparse MLP's output (N, D), the balance loss and tokens an expert (E)."""
        num_experts = self.cfg.num_experts
        probs_NE = F.linear(x_ND, self.router).softmax(-1)
        gate_NK, ids_NK = probs_NE.topk(self.cfg.num_experts_per_tok, dim=-1)
        gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
        y_ND: Tensor = GroupedExperts.apply(  # type: ignore[no-untyped-call]
            x_ND, self.up, self.down, ids_NK, gate_NK
        )
        load_E = torch.bincount(ids_NK.reshape(-1), minlength=num_experts) / ids_NK.numel()
        return y_ND, num_experts * (load_E * probs_NE.mean(0)).sum(), load_E

    def forward(
        self, x_BTD: Tensor, cos_TA: Tensor, sin_TA: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's output, its balance loss and its expert load."""
        eps = self.cfg.norm_eps
        x_BTD = x_BTD + self.attend(rms_norm(x_BTD, self.attn_norm, eps), cos_TA, sin_TA, mask)
        normed = rms_norm(x_BTD, self.mlp_norm, eps).view(-1, x_BTD.shape[-1])
        y_ND, balance, load_E = self.experts(normed)
        return x_BTD + y_ND.view_as(x_BTD), balance, load_E


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square, then scale it."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def rotate(x: Tensor, cos_TA: Tensor, sin_TA: Tensor) -> Tensor:
    """Turn (.., T, A) by its positions; halves of A are the pairs."""
    left, right = x.chunk(2, dim=-1)
    return x * cos_TA + torch.cat((-right, left), dim=-1) * sin_TA


class Net(nn.Module):
    """The whole model; the head shares the embedding's matrix."""

    def __init__(self, cfg: NetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = weight(cfg.vocab_size, cfg.hidden_size, std=0.05)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden_size))
        frequency = cfg.rope_theta ** -(torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angle_TA = torch.outer(torch.arange(cfg.max_positions), frequency).repeat(1, 2)
        self.register_buffer("cos", angle_TA.cos(), persistent=False)
        self.register_buffer("sin", angle_TA.sin(), persistent=False)

    def forward(self, ids_BT: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normed hidden states (B, T, D), the mean balance loss, and load (layers, E)."""
        length = ids_BT.shape[1]
        cos_TA, sin_TA = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        x_BTD = F.embedding(ids_BT, self.embedding)
        balances, loads = [], []
        for layer in self.layers:
            x_BTD, balance, load_E = layer(x_BTD, cos_TA, sin_TA, mask)
            balances.append(balance)
            loads.append(load_E)
        normed = rms_norm(x_BTD, self.norm, self.cfg.norm_eps)
        return normed, torch.stack(balances).mean(), torch.stack(loads)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (.., V) of normed hidden states."""
        return F.linear(x, self.embedding)
