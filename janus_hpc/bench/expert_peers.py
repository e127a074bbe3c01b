"""What the routed experts are compared with: torch's grouped matrix product, and a loop over experts.

Knows neither the engine nor its kernels; weights, activations and sums are torch's own.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from janus_hpc.bench.timing import Call

# Legend: T tokens, J choices a token, S slots, P entries (token, choice) with a slot here, D hidden,
# I expert width, N = 2 I rows of gate and up.


@dataclass(frozen=True)
class Layout:
    """Entries by slot: flat places in [T, J], their tokens, and where each slot's part ends (int32)."""

    entries_P: Tensor
    tokens_P: Tensor
    ends_S: Tensor

    @classmethod
    def sorted(cls, slots_TJ: Tensor, num_slots: int, num_entries: int | None = None) -> "Layout":
        """Of slots (int32, -1: not here). With the number of entries given, nothing waits for a GPU."""
        flat = slots_TJ.flatten()
        if num_entries is None:
            num_entries = int((flat >= 0).sum())
        keys, order = torch.where(flat >= 0, flat, num_slots).sort(stable=True)
        slots_S = torch.arange(num_slots, dtype=torch.int32, device=flat.device)
        ends_S = torch.searchsorted(keys, slots_S, right=True).int()
        entries_P = order[:num_entries]
        return cls(entries_P, entries_P // slots_TJ.shape[1], ends_S)


@dataclass(frozen=True)
class PeerExperts:
    """Weights as torch's grouped product takes them."""

    gate_up_SND: Tensor
    down_SDI: Tensor

    @classmethod
    def random(
        cls, num_slots: int, hidden: int, inter: int, dtype: torch.dtype, device: torch.device
    ) -> "PeerExperts":
        """One expert drawn, in all slots: values take no part in the time, places in memory do."""
        generator = torch.Generator().manual_seed(0)
        gate_up_ND = torch.randn((2 * inter, hidden), generator=generator) / hidden**0.5
        down_DI = torch.randn((hidden, inter), generator=generator) / inter**0.5
        gate_up_SND = torch.empty((num_slots, 2 * inter, hidden), dtype=dtype, device=device)
        down_SDI = torch.empty((num_slots, hidden, inter), dtype=dtype, device=device)
        gate_up_SND[:], down_SDI[:] = gate_up_ND.to(device), down_DI.to(device)
        return cls(gate_up_SND, down_SDI)

    def grouped(self, layout: Layout, x_PD: Tensor, weights_TJ: Tensor, num_tokens: int) -> Tensor:
        """Sums [T, D] in float32 of rows that lie by slot already."""
        mixed_PN = grouped_mm(x_PD, self.gate_up_SND.transpose(1, 2), offs=layout.ends_S)
        gate_PI, up_PI = mixed_PN.chunk(2, dim=1)
        out_PD = grouped_mm(
            silu(gate_PI) * up_PI, self.down_SDI.transpose(1, 2), offs=layout.ends_S
        )
        terms_PD = out_PD.float() * weights_TJ.flatten()[layout.entries_P, None]
        sums_TD = torch.zeros((num_tokens, x_PD.shape[1]), device=x_PD.device)
        return sums_TD.index_add_(0, layout.tokens_P, terms_PD)

    def sorting(
        self, x_TD: Tensor, slots_TJ: Tensor, weights_TJ: Tensor, num_entries: int
    ) -> Tensor:
        """The same from rows by token."""
        layout = Layout.sorted(slots_TJ, self.down_SDI.shape[0], num_entries)
        return self.grouped(layout, x_TD[layout.tokens_P], weights_TJ, x_TD.shape[0])

    def loop(self, layout: Layout, x_TD: Tensor, weights_TJ: Tensor) -> Call:
        """The same, one activated expert at a time; which rows are whose is found beforehand."""
        starts = [0, *layout.ends_S.tolist()]
        parts = [
            (slot, layout.tokens_P[start:end], layout.entries_P[start:end])
            for slot, (start, end) in enumerate(pairwise(starts))
            if end > start
        ]

        def run() -> Tensor:
            sums_TD = torch.zeros(x_TD.shape, device=x_TD.device)
            for slot, tokens_R, entries_R in parts:
                gate_RI, up_RI = (x_TD[tokens_R] @ self.gate_up_SND[slot].T).chunk(2, dim=1)
                out_RD = (silu(gate_RI) * up_RI) @ self.down_SDI[slot].T
                sums_TD.index_add_(
                    0, tokens_R, out_RD.float() * weights_TJ.flatten()[entries_R, None]
                )
            return sums_TD

        return run
