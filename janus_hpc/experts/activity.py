"""How often each expert is chosen, and how many activated experts the fullest expert rank has.

A pass is one microbatch of a step in one layer: the experts that it activates are read once for it. Where
every expert rank sees all choices (EGate) one rank's counts are the whole truth; where each sees those of
its own experts (AGate) the ranks' counts are put together at the end, and what would need all ranks in each
pass is not known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from janus_hpc.kernels.slot_map import Balanced

# Legend: L sparse layers, E experts, R expert ranks, M rows of this rank's experts.


class ExpertActivity:
    """Accumulates over passes, on the device of what it is given.

    `partial`: only this rank's own experts were counted, so that `a_max_*` are of this rank alone.
    """

    def __init__(
        self, sparse_layers: Sequence[int], num_experts: int, device: torch.device | None = None
    ) -> None:
        self.index_of_layer = {layer: i for i, layer in enumerate(sparse_layers)}
        self._num_experts = num_experts
        self._device = device or torch.device("cpu")
        self.clear()

    def clear(self) -> None:
        """Forget all passes."""
        num_layers = len(self.index_of_layer)
        self.partial = False
        self.tokens_LE = self._zeros(num_layers, self._num_experts)
        self.a_max_sum_L = self._zeros(num_layers)
        self.a_max_max_L = self._zeros(num_layers)
        self.activated_sum_L = self._zeros(num_layers)
        self.num_passes_L = [0] * num_layers

    def record(self, layer: int, balanced: Balanced) -> None:
        """Count one pass's choices of all tokens."""
        self._add(layer, balanced.counts_E, balanced.loads_R)

    def record_own(self, layer: int, ids_M: Tensor) -> None:
        """Count one pass's choices of this rank's experts; also where there are none."""
        self.partial = True
        counts_E = torch.bincount(ids_M.to(self._device), minlength=self._num_experts)
        self._add(layer, counts_E, (counts_E > 0).sum(dim=0, keepdim=True))

    def add(self, other: "ExpertActivity") -> None:
        """Count in what another one counted at another time."""
        self.partial |= other.partial
        self.tokens_LE += other.tokens_LE
        self.a_max_sum_L += other.a_max_sum_L
        self.a_max_max_L = torch.maximum(self.a_max_max_L, other.a_max_max_L)
        self.activated_sum_L += other.activated_sum_L
        passes = zip(self.num_passes_L, other.num_passes_L, strict=True)
        self.num_passes_L = [mine + its for mine, its in passes]

    def a_max_mean(self) -> Tensor:
        """Mean over passes of the largest count of activated experts on a rank, per layer; NaN if partial."""
        return self._mean(self.a_max_sum_L)

    def activated_mean(self) -> Tensor:
        """Mean over passes of the replicas that all ranks together activate, per layer; NaN if partial."""
        return self._mean(self.activated_sum_L)

    def to_cpu(self) -> "ExpertActivity":
        """The same counts in host memory; waits for a GPU."""
        cpu = torch.device("cpu")
        copy = ExpertActivity(tuple(self.index_of_layer), self._num_experts, cpu)
        for name in ("tokens_LE", "a_max_sum_L", "a_max_max_L", "activated_sum_L"):
            setattr(copy, name, getattr(self, name).to(cpu, copy=True))
        copy.partial, copy.num_passes_L = self.partial, list(self.num_passes_L)
        return copy

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def _mean(self, sum_L: Tensor) -> Tensor:
        if self.partial:
            return torch.full(sum_L.shape, torch.nan, dtype=torch.float64)
        return sum_L.cpu().double() / torch.tensor(self.num_passes_L).clamp(min=1)

    def _add(self, layer: int, counts_E: Tensor, loads_R: Tensor) -> None:
        index = self.index_of_layer[layer]
        a_max = loads_R.max()
        self.tokens_LE[index] += counts_E
        self.a_max_sum_L[index] += a_max
        self.a_max_max_L[index] = torch.maximum(self.a_max_max_L[index], a_max)
        self.activated_sum_L[index] += loads_R.sum()
        self.num_passes_L[index] += 1


def over_ranks(activities: Sequence[ExpertActivity]) -> ExpertActivity | None:
    """The expert ranks' counts as one; None of none. The largest a_max is the ranks' largest in any case."""
    if not activities:
        return None
    whole = activities[0]
    if any(its.partial for its in activities):
        whole.partial = True
        whole.tokens_LE = torch.stack([its.tokens_LE for its in activities]).sum(dim=0)
        whole.a_max_max_L = torch.stack([its.a_max_max_L for its in activities]).amax(dim=0)
        passes = zip(*(its.num_passes_L for its in activities), strict=True)
        whole.num_passes_L = [max(of_layer) for of_layer in passes]
    return whole
