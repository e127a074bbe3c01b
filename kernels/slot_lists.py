"""The slots of one layer over all expert ranks, as plain lists; knows experts and ranks as numbers only.

E experts, R expert ranks, C slots a rank; slot s of all ranks together is slot s % C of rank s // C.
"""

import struct
from collections.abc import Sequence
from functools import cached_property

from janus_hpc.kernels.assign import assign_balanced

WORD_BITS = 64


class SlotLists:
    """`hosts[e]`: the ranks with a replica of e as a bit set. `primary[e]`: the rank where each expert starts
    when loads are balanced, such that all experts together are spread as evenly as can be.
    """

    def __init__(self, experts_RC: Sequence[Sequence[int]], num_experts: int) -> None:
        """experts_RC: the expert in each slot, -1 for none; at most one replica of an expert on a rank."""
        self.num_experts = num_experts
        self.num_ranks = len(experts_RC)
        self.num_slots = len(experts_RC[0])
        self.hosts = [0] * num_experts
        self.slot_of_ER = [-1] * (num_experts * self.num_ranks)
        for expert_rank, experts in enumerate(experts_RC):
            for slot, expert in enumerate(experts):
                if expert < 0:
                    continue
                assert not self.hosts[expert] >> expert_rank & 1, f"{expert=} {expert_rank=}"
                self.hosts[expert] |= 1 << expert_rank
                at = expert * self.num_ranks + expert_rank
                self.slot_of_ER[at] = expert_rank * self.num_slots + slot
        assert all(self.hosts), f"expert {self.hosts.index(0)} has no slot"
        lowest = [(mask & -mask).bit_length() - 1 for mask in self.hosts]
        everybody = range(num_experts)
        rank_of = assign_balanced(everybody, self.hosts, lowest, self.num_ranks)
        self.primary = [rank_of[expert] for expert in everybody]

    @property
    def num_words(self) -> int:
        """Words of WORD_BITS bits that a rank set takes: a power of two."""
        words = -(-self.num_ranks // WORD_BITS)
        return 1 << (words - 1).bit_length()

    def host_words(self) -> list[int]:
        """The rank sets as signed 64-bit words, `num_words` an expert, low ranks first."""
        return list(self._host_words)

    @cached_property
    def _host_words(self) -> tuple[int, ...]:
        num_words = self.num_words
        bits = b"".join(mask.to_bytes(num_words * WORD_BITS // 8, "little") for mask in self.hosts)
        return struct.unpack(f"<{len(self.hosts) * num_words}q", bits)
