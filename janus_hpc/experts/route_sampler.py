"""Samples which experts tokens choose, in bounded memory and a bounded share of a rank's time.

Gives `RoutingTrace`; knows nothing of exchanges, placements or of what the trace is used for.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from janus_hpc.routing.trace import ROUTE_DTYPE, RoutingTrace

# Legend: N tokens, K choices a token, L MoE layers, E experts, W routes a window holds, F routes to
# fold, P pairs of a token's choices.

# Decisions are kept for this many passes: more than can be between their first and last layer.
_MAX_OPEN_PASSES = 64


class RouteSampler:
    """Records whole passes or nothing of them: the same tokens in every layer.

    Rows go into a ring on the device of the ids, so that recording waits for no GPU; they are folded
    into counts on the host when a layer's ring has no room. `share` bounds the time spent here, waits
    of folding for a GPU included, as a part of the time since the first pass: a pass is sampled
    only while no more than that is spent. The first pass with tokens, and the first after `clear`,
    is sampled in any case, so that short runs have a trace. `clock` gives seconds.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        num_experts: int,
        top_k: int,
        *,
        window: int = 4096,
        max_tokens_per_pass: int = 64,
        share: float = 0.008,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert 0 < max_tokens_per_pass <= window, f"{max_tokens_per_pass=} {window=}"
        assert 0 < top_k <= num_experts <= np.iinfo(ROUTE_DTYPE).max, f"{top_k=} {num_experts=}"
        self.spent_s = 0.0
        self._layer_ids = tuple(layer_ids)
        self._index_of_layer = {layer: index for index, layer in enumerate(layer_ids)}
        self._num_experts = num_experts
        self._top_k = top_k
        self._window = window
        self._max_tokens = max_tokens_per_pass
        self._share = share
        self._clock = clock
        self._started_s: float | None = None
        self._pairs_P = np.triu_indices(top_k, k=1)
        self._ring_LWK: torch.Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all tokens. The time spent stays spent."""
        num_layers, num_experts = len(self._layer_ids), self._num_experts
        self.num_sampled_passes = 0
        # What came before may have ended between two layers: all count passes from the start again.
        self._passes_L = [0] * num_layers
        # Of each of the latest passes its number among the sampled ones, 0 if it is not sampled.
        self._decisions = [0] * _MAX_OPEN_PASSES
        self._counts_LE = np.zeros((num_layers, num_experts), np.int64)
        # Of each pair the half that was met: a token's choices come in any order.
        self._pairs_LEE = np.zeros((num_layers, num_experts, num_experts), np.int64)
        self._taken_L = [0] * num_layers
        self._folded_L = [0] * num_layers
        self._stagger()

    def record(self, layer: int, ids_NK: torch.Tensor) -> None:
        """Note one pass's choices in one layer; N may be 0.

        To be called for every pass in every layer, in the order of layers; several passes may be
        on their way at once as long as every layer sees them in the same order.
        """
        index = self._index_of_layer[layer]
        number = self._passes_L[index]
        self._passes_L[index] = number + 1
        at = number % _MAX_OPEN_PASSES
        if index == 0:
            self._decisions[at] = self._decide(ids_NK.shape[0])
        sample = self._decisions[at]
        if sample:
            started_s = self._clock()
            self._take(index, sample, ids_NK)
            self.spent_s += self._clock() - started_s

    def trace(self) -> RoutingTrace:
        """Everything sampled since the start or the last `clear`; waits for a GPU."""
        started_s = self._clock()
        routes_LWK = np.full((len(self._layer_ids), self._window, self._top_k), -1, ROUTE_DTYPE)
        if self._ring_LWK is not None:
            ring_LWK = self._ring_LWK.cpu().numpy()
            for index, taken in enumerate(self._taken_L):
                self._fold(index, ring_LWK[index])
                kept = min(taken, self._window)
                latest_N = np.arange(taken - kept, taken) % self._window
                routes_LWK[index, :kept] = ring_LWK[index, latest_N]
        self._stagger()
        taken_L = np.array(self._taken_L, np.int64)
        trace = RoutingTrace(
            layer_ids=self._layer_ids,
            num_experts=self._num_experts,
            top_k=self._top_k,
            num_tokens_L=taken_L,
            counts_LE=self._counts_LE.copy(),
            coactivation_LEE=self._pairs_LEE + self._pairs_LEE.transpose(0, 2, 1),
            num_routes_L=np.minimum(taken_L, self._window),
            routes_LWK=routes_LWK,
        )
        self.spent_s += self._clock() - started_s
        return trace

    def _decide(self, num_tokens: int) -> int:
        """The number of the beginning pass among the sampled ones, 0 if it is not one of them."""
        now_s = self._clock()
        if self._started_s is None:
            self._started_s = now_s
        too_much = self.spent_s > self._share * (now_s - self._started_s)
        if not num_tokens or (too_much and self.num_sampled_passes):
            return 0
        self.num_sampled_passes += 1
        return self.num_sampled_passes

    def _take(self, index: int, sample: int, ids_NK: torch.Tensor) -> None:
        """Copy evenly spaced rows into the layer's ring."""
        assert ids_NK.ndim == 2 and ids_NK.shape[1] == self._top_k, f"{ids_NK.shape=}"
        step = -(-ids_NK.shape[0] // self._max_tokens) or 1
        # The first row changes, since rows of a batch stay where they are for many passes.
        rows_NK = ids_NK[sample % step :: step]
        count = rows_NK.shape[0]
        if self._ring_LWK is None:
            shape = (len(self._layer_ids), self._window, self._top_k)
            self._ring_LWK = torch.empty(shape, dtype=torch.int16, device=ids_NK.device)
        ring_WK = self._ring_LWK[index]
        if self._taken_L[index] + count > self._fold_at_L[index]:
            self._fold(index, ring_WK.cpu().numpy())
            self._fold_at_L[index] = self._taken_L[index] + self._window
        start = self._taken_L[index] % self._window
        before_end = min(count, self._window - start)
        ring_WK[start : start + before_end].copy_(rows_NK[:before_end])
        if before_end < count:
            ring_WK[: count - before_end].copy_(rows_NK[before_end:])
        self._taken_L[index] += count

    def _fold(self, index: int, ring_WK: npt.NDArray[np.int16]) -> None:
        """Count the rows of the ring that are not counted yet."""
        unfolded_F = np.arange(self._folded_L[index], self._taken_L[index]) % self._window
        ids_FK = ring_WK[unfolded_F].astype(np.int64)
        num_experts = self._num_experts
        self._counts_LE[index] += np.bincount(ids_FK.ravel(), minlength=num_experts)
        first_P, second_P = self._pairs_P
        pairs_FP = ids_FK[:, first_P] * num_experts + ids_FK[:, second_P]
        counts_EE = np.bincount(pairs_FP.ravel(), minlength=num_experts**2)
        self._pairs_LEE[index] += counts_EE.reshape(num_experts, num_experts)
        self._folded_L[index] = self._taken_L[index]

    def _stagger(self) -> None:
        """Let layers run out of room one after the other, so that no pass folds all of them."""
        num_layers = len(self._layer_ids)
        self._fold_at_L = [
            taken + self._window * (index + 1) // num_layers
            for index, taken in enumerate(self._taken_L)
        ]
