"""Times of a MoE layer's stages on this rank, with made-up tokens: attention, experts, exchange rounds.

Measures only: what follows from the times is `planner.pingpong`'s.
"""

import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from janus_hpc.comm.exchange import Exchange, RoutedRows, StepHeader
from janus_hpc.comm.pulse import Pulse
from janus_hpc.engine.expert_loop import serve_layer
from janus_hpc.engine.interleave import send_tokens
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.kvcache import KVCache
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.topology import Role

# Legend: N tokens, D hidden, M blocks a sequence.

# Tokens that a made-up sequence has behind it.
CONTEXT = 256
WINDOW_S = 0.08
NUM_STEPS = 3
MAX_LAYERS = 4


class NoExperts:
    """Computes nothing, so that what remains of an exchange is the exchange."""

    def compute(self, layer: int, x_ND: torch.Tensor, out_ND: torch.Tensor) -> None:
        """Leaves out_ND as it is."""

    def compute_routed(self, layer: int, routed: RoutedRows, out_ND: torch.Tensor) -> None:
        """Leaves out_ND as it is."""


def attention_layers(model: AttentionModel, cache: KVCache, num_tokens: int) -> Iterator[None]:
    """Without end: each `next` computes from one of the first MAX_LAYERS MoE layers to the next one,
    the shared expert included.
    """
    tokens = _decode_tokens(model, cache, num_tokens)
    while True:
        stream = model.forward(tokens, cache)
        away = next(stream)
        y_TD = torch.zeros(away.x_TD.shape, dtype=torch.float32, device=away.x_TD.device)
        for _ in model.spec.sparse_layers[1:MAX_LAYERS]:
            away.meanwhile()
            yield
            away = stream.send(y_TD)
        away.meanwhile()
        stream.close()
        yield


def expert_layers(experts: ExpertModel, num_tokens: int, row_dtype: torch.dtype) -> Iterator[None]:
    """Without end: each `next` computes this rank's experts of one of the first MAX_LAYERS MoE layers
    for all ranks' tokens.
    """
    x_ND = _random_rows(num_tokens, experts.spec.hidden, row_dtype)
    y_ND = torch.zeros(x_ND.shape, dtype=torch.float64)
    while True:
        for layer in experts.spec.sparse_layers[:MAX_LAYERS]:
            experts.compute(layer, x_ND, y_ND)
            yield


def seconds_each(units: Iterator[None], device: torch.device) -> float:
    """Mean time of a unit in WINDOW_S or a little more.

    The first MAX_LAYERS, untimed, warm up: pages of a cache are slow when they are touched first.
    """
    for _ in range(MAX_LAYERS):
        _run(units, device)
    started_s = time.perf_counter()
    num_units, elapsed_s = 0, 0.0
    while elapsed_s < WINDOW_S:
        _run(units, device)
        num_units += 1
        elapsed_s = time.perf_counter() - started_s
    return elapsed_s / num_units


def exchange_round_s(
    exchange: Exchange,
    layers: Sequence[int],
    *,
    role: Role,
    num_tokens: int,
    hidden: int,
    row_dtype: torch.dtype,
    gate: RoutedGate | None,
) -> float:
    """Median time of an attention rank's rows there and sums back; 0.0 on an expert rank.

    Nothing is computed on the way. The first step is not timed. Collective over the active ranks.
    """
    times_s: list[float] = []
    header = StepHeader(num_tokens) if role.does_attention else None
    pulse = Pulse()
    x_TD = _random_rows(num_tokens, hidden, row_dtype)
    for _ in range(NUM_STEPS):
        exchange.open_step(header)
        for layer in layers[:MAX_LAYERS]:
            started_s = time.perf_counter()
            if role.does_attention:
                send_tokens(exchange, gate, layer, 0, x_TD)
            if role.does_experts:
                serve_layer(exchange, NoExperts(), pulse, layer, 0)
            if role.does_attention:
                exchange.recv_outputs(layer, 0)
                times_s.append(time.perf_counter() - started_s)
        exchange.settle()
    return statistics.median(times_s[len(times_s) // NUM_STEPS :]) if times_s else 0.0


def _run(units: Iterator[None], device: torch.device) -> None:
    next(units)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random_rows(num_tokens: int, hidden: int, row_dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn((num_tokens, hidden), generator=generator).to(row_dtype)


def _decode_tokens(model: AttentionModel, cache: KVCache, num_tokens: int) -> StepTokens:
    """The next token of `num_tokens` sequences with CONTEXT tokens each, or as many as there is room for.

    Sequences share blocks where the cache is small. What they store is overwritten before it is read.
    """
    device = model.cos_Ph.device
    block_size = cache.layers[0][0].shape[1]
    length = min(CONTEXT, model.cos_Ph.shape[0], cache.num_blocks * block_size)
    num_blocks = -(-length // block_size)
    ids_N = torch.arange(num_tokens, device=device)
    tables_NM = torch.arange(num_tokens * num_blocks, device=device) % cache.num_blocks
    tables_NM = tables_NM.view(num_tokens, num_blocks)
    positions_N = torch.full((num_tokens,), length - 1, device=device)
    return StepTokens(
        token_ids_T=ids_N % model.spec.vocab,
        positions_T=positions_N.int(),
        sequence_ids_T=ids_N.int(),
        slots_T=tables_NM[:, -1] * block_size + (length - 1) % block_size,
        block_tables_SM=tables_NM.int(),
        cos_Th=model.cos_Ph[positions_N],
        sin_Th=model.sin_Ph[positions_N],
    )
