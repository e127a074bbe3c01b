"""The paged KV cache of one attention rank: its tensors, and which blocks are free.

Knows nothing of rows or scheduling: the batcher asks for blocks and gives them back.
"""

from collections.abc import Iterable

import torch

from janus_hpc.errors import UsageError
from janus_hpc.models.spec import GqaSpec, ModelSpec

# Legend: N blocks, B tokens a block, H KV heads, d head dim.


class BlockPool:
    """Free block ids of the cache; the lowest-numbered are handed out first after a fresh start."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        assert self._free, f"no free block of {self.num_blocks}"
        return self._free.pop()

    def give_back(self, block_ids: Iterable[int]) -> None:
        self._free.extend(block_ids)
        assert len(self._free) <= self.num_blocks, f"{len(self._free)=} > {self.num_blocks=}"


class KVCache:
    """Per layer the key and value blocks, k_NBHd and v_NBHd.

    With latent attention there is one head, and the values are the first columns of the keys (a view).
    Memory is reserved, not touched: pages come into being when tokens are stored.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(spec.num_layers):
            self.layers.append(_layer(spec, num_blocks, block_size, dtype, device))

    def store(
        self,
        layer: int,
        slots_T: torch.Tensor,
        k_THd: torch.Tensor,
        v_THd: torch.Tensor | None,
    ) -> None:
        """Write T tokens into their slots (block id * block size + offset); v is None where it is a view of k."""
        k_NBHd, v_NBHd = self.layers[layer]
        k_NBHd.flatten(0, 1).index_copy_(0, slots_T, k_THd.to(k_NBHd.dtype))
        if v_THd is not None:
            v_NBHd.flatten(0, 1).index_copy_(0, slots_T, v_THd.to(v_NBHd.dtype))


def _layer(
    spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    attention = spec.attention
    if isinstance(attention, GqaSpec):
        shape = (num_blocks, block_size, attention.num_kv_heads, attention.head_dim)
        k_NBHd = torch.empty(shape, dtype=dtype, device=device)
        return k_NBHd, torch.empty(shape, dtype=dtype, device=device)
    width = attention.kv_width()
    k_NBHd = torch.empty((num_blocks, block_size, 1, width), dtype=dtype, device=device)
    return k_NBHd, k_NBHd[..., : attention.kv_lora_rank]


def num_blocks_for(
    spec: ModelSpec, budget_bytes: int, block_size: int, dtype: torch.dtype, max_tokens: int
) -> int:
    """Blocks that fit into `budget_bytes`, at most what `max_tokens` cached tokens need.

    Errors: UsageError when not even one block fits.
    """
    per_block = block_bytes(spec, block_size, dtype)
    fitting = budget_bytes // per_block
    if fitting < 1:
        raise UsageError(
            f"--kv-memory of {budget_bytes} bytes holds no block of {per_block} bytes "
            f"({block_size} tokens, {spec.num_layers} layers)"
        )
    return min(fitting, -(-max_tokens // block_size))


def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return spec.attention.kv_width() * spec.num_layers * block_size * dtype.itemsize
