"""What was seen of a model's routing: counts and co-activation of experts, and a window of recent routes.

Plain arrays; knows neither how tokens were sampled nor what is decided from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.errors import UsageError

# Legend: L MoE layers, E experts, K choices a token, W routes a window holds, N routes of one window.

ROUTE_DTYPE = np.int16


@dataclass(frozen=True, eq=False, kw_only=True)
class RoutingTrace:
    """Choices of sampled tokens in every MoE layer; a token's K experts are distinct.

    `layer_ids` are the model's layer indices, ascending. `coactivation_LEE` counts tokens that chose
    both experts: symmetric, zero on the diagonal. `routes_LWK` holds the experts of the
    `num_routes_L` tokens sampled last, the oldest first; rows beyond are -1.
    """

    layer_ids: tuple[int, ...]
    num_experts: int
    top_k: int
    num_tokens_L: npt.NDArray[np.int64]
    counts_LE: npt.NDArray[np.int64]
    coactivation_LEE: npt.NDArray[np.int64]
    num_routes_L: npt.NDArray[np.int64]
    routes_LWK: npt.NDArray[np.int16]

    @property
    def window(self) -> int:
        """W: how many routes a layer's window can hold."""
        width: int = self.routes_LWK.shape[1]
        return width

    def routes_NK(self, index: int) -> npt.NDArray[np.int16]:
        """The routes in the window of layer `layer_ids[index]`, without unused rows."""
        filled: npt.NDArray[np.int16] = self.routes_LWK[index, : self.num_routes_L[index]]
        return filled

    def check(self) -> None:
        """Raise UsageError, naming no file, for the first thing that does not fit together."""
        self._check_shapes()
        for index, layer in enumerate(self.layer_ids):
            _expect(self._counts_fit(index), f"counts of layer {layer} do not fit its tokens")
            fits = self._coactivation_fits(index)
            _expect(fits, f"co-activation of layer {layer} does not fit its counts")
            self._check_routes(index)

    def _check_shapes(self) -> None:
        ids, num_layers = self.layer_ids, len(self.layer_ids)
        ascending = all(a < b for a, b in zip((-1, *ids), ids, strict=False))
        _expect(ascending, f"layer ids {list(ids)} are not ascending")
        num_experts, top_k = self.num_experts, self.top_k
        chosen = f"{top_k} choices among {num_experts} experts"
        most = np.iinfo(ROUTE_DTYPE).max
        _expect(0 < top_k <= num_experts <= most, f"{chosen}, expected 1 <= choices <= experts")
        _expect(self.routes_LWK.ndim == 3, f"routes have {self.routes_LWK.ndim} dimensions, not 3")
        per_layer = (num_layers,)
        for name, found, shape in (
            ("num_tokens", self.num_tokens_L, per_layer),
            ("counts", self.counts_LE, (*per_layer, num_experts)),
            ("coactivation", self.coactivation_LEE, (*per_layer, num_experts, num_experts)),
            ("num_routes", self.num_routes_L, per_layer),
            ("routes", self.routes_LWK, (*per_layer, self.window, top_k)),
        ):
            _expect(found.shape == shape, f"{name} has shape {found.shape}, expected {shape}")

    def _counts_fit(self, index: int) -> bool:
        counts_E, num_tokens = self.counts_LE[index], self.num_tokens_L[index]
        return bool(
            counts_E.min() >= 0
            and counts_E.max() <= num_tokens
            and counts_E.sum() == num_tokens * self.top_k
        )

    def _coactivation_fits(self, index: int) -> bool:
        """Each of an expert's tokens chose K - 1 others beside it."""
        together_EE = self.coactivation_LEE[index]
        others_E = self.counts_LE[index] * (self.top_k - 1)
        return bool(
            together_EE.min() >= 0
            and not together_EE.diagonal().any()
            and np.array_equal(together_EE, together_EE.T)
            and np.array_equal(together_EE.sum(axis=1), others_E)
        )

    def _check_routes(self, index: int) -> None:
        layer, num_routes = self.layer_ids[index], int(self.num_routes_L[index])
        most = min(self.window, int(self.num_tokens_L[index]))
        _expect(
            0 <= num_routes <= most, f"{num_routes} routes of layer {layer}, expected <= {most}"
        )
        ids_NK = self.routes_NK(index)
        in_range = np.all((ids_NK >= 0) & (ids_NK < self.num_experts))
        in_range &= np.all(self.routes_LWK[index, num_routes:] == -1)
        _expect(
            in_range,
            f"routes of layer {layer}: expert ids out of range; expected 0 to"
            f" {self.num_experts - 1} in the first {num_routes} and -1 after them",
        )
        counts_E = np.bincount(ids_NK.ravel(), minlength=self.num_experts)
        fits = np.all(counts_E <= self.counts_LE[index])
        fits &= np.all(np.diff(np.sort(ids_NK, axis=1), axis=1) > 0)
        _expect(fits, f"routes of layer {layer} do not fit its counts")


def merge_traces(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of several of the same model, from ranks that saw different tokens.

    Counts add up. The window is as wide as the widest; where not all routes have room, each trace
    gives as many of its latest as any other that has them, in turns by age.
    """
    first = traces[0]
    for its in traces:
        same = (its.layer_ids, its.num_experts, its.top_k)
        assert same == (first.layer_ids, first.num_experts, first.top_k), f"{same=}"
    window = max(its.window for its in traces)
    num_layers = len(first.layer_ids)
    routes_LWK = np.full((num_layers, window, first.top_k), -1, ROUTE_DTYPE)
    num_routes_L = np.zeros(num_layers, np.int64)
    for index in range(num_layers):
        mixed_NK = _interleaved([its.routes_NK(index) for its in traces], window)
        num_routes_L[index] = len(mixed_NK)
        routes_LWK[index, : len(mixed_NK)] = mixed_NK
    return RoutingTrace(
        layer_ids=first.layer_ids,
        num_experts=first.num_experts,
        top_k=first.top_k,
        num_tokens_L=np.sum([its.num_tokens_L for its in traces], axis=0),
        counts_LE=np.sum([its.counts_LE for its in traces], axis=0),
        coactivation_LEE=np.sum([its.coactivation_LEE for its in traces], axis=0),
        num_routes_L=num_routes_L,
        routes_LWK=routes_LWK,
    )


def _interleaved(windows: Sequence[npt.NDArray[np.int16]], most: int) -> npt.NDArray[np.int16]:
    """The latest rows of all windows, at most `most`, the oldest first."""
    age_N = np.concatenate([np.arange(len(its_NK))[::-1] for its_NK in windows])
    kept_N = np.argsort(age_N, kind="stable")[:most][::-1]
    mixed_NK: npt.NDArray[np.int16] = np.concatenate(windows)[kept_N]
    return mixed_NK


def _expect(holds: object, message: str) -> None:
    if not holds:
        raise UsageError(message)
