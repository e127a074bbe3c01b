"""Rotary position tables: cosines and sines of every position, with YaRN scaling where the model asks.

Tables are computed once, in float64 from float32 frequencies, so that a position's row never depends on
the batch it is used in. Applying them is a kernel.
"""

from math import ceil, floor, log, pi

import numpy as np
import torch

from janus_hpc.models.spec import RopeSpec, YarnSpec

# Legend: P positions, h half of the rotated channels.


def rope_tables(rope: RopeSpec, max_context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos_Ph and sin_Ph, float32."""
    inv_freq_h = _inverse_frequencies(rope)
    positions_P = np.arange(max_context, dtype=np.float32)
    angles_Ph = (positions_P[:, None] * inv_freq_h[None, :]).astype(np.float64)
    scale = 1.0 if rope.yarn is None else _attention_factor(rope.yarn)
    cos_Ph = (np.cos(angles_Ph) * scale).astype(np.float32)
    sin_Ph = (np.sin(angles_Ph) * scale).astype(np.float32)
    return torch.from_numpy(cos_Ph), torch.from_numpy(sin_Ph)


def _inverse_frequencies(rope: RopeSpec) -> np.ndarray:
    """theta^(-2i/dim), blended with its interpolation under YaRN (arXiv 2309.00071, section 3.2)."""
    exponents_h = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    base_h = np.float32(rope.theta) ** exponents_h
    extrapolated_h = (np.float32(1.0) / base_h).astype(np.float32)
    if rope.yarn is None:
        return extrapolated_h
    yarn = rope.yarn
    interpolated_h = (np.float32(1.0) / (np.float32(yarn.factor) * base_h)).astype(np.float32)
    low, high = _correction_range(rope, yarn)
    ramp_h = (np.arange(rope.dim // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    keep_h = 1 - np.clip(ramp_h, 0, 1).astype(np.float32)
    blended_h = interpolated_h * (1 - keep_h) + extrapolated_h * keep_h
    return np.asarray(blended_h, dtype=np.float32)


def _correction_range(rope: RopeSpec, yarn: YarnSpec) -> tuple[float, float]:
    """Channels between which the blend ramps, from the numbers of rotations beta_fast and beta_slow."""

    def channel(rotations: float) -> float:
        span = yarn.original_max_context / (rotations * 2 * pi)
        return rope.dim * log(span) / (2 * log(rope.theta))

    low, high = channel(yarn.beta_fast), channel(yarn.beta_slow)
    if yarn.truncate:
        low, high = floor(low), ceil(high)
    return max(low, 0), min(high, rope.dim - 1)


def _attention_factor(yarn: YarnSpec) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor

    def mscale(factor: float) -> float:
        return 0.1 * factor * log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0

    if yarn.mscale and yarn.mscale_all_dim:
        return mscale(yarn.mscale) / mscale(yarn.mscale_all_dim)
    return mscale(1.0)
