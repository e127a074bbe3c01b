"""Random weights for benchmarks: any tensor of any shape, the same numbers for the same name and seed."""

import hashlib

import torch


class RandomWeights:
    """A `Reader` without files. Vectors are ones; matrices have a spread of 1/sqrt(inputs)."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.seed = seed
        self.dtype = dtype

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype)
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        weight = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)
        return weight.to(self.dtype)

    def check_unchanged(self) -> None:
        """Nothing is stored."""
