"""A routing trace of the demo model with made-up routes that fit together."""

import numpy as np

from janus_hpc.routing.trace import RoutingTrace

LAYERS, EXPERTS, TOP_K, ROUTES = 4, 32, 4, 60


def demo_trace() -> RoutingTrace:
    """ROUTES random tokens in every layer, all of them in the window."""
    rng = np.random.default_rng(0)
    routes = np.array(
        [[rng.permutation(EXPERTS)[:TOP_K] for _ in range(ROUTES)] for _ in range(LAYERS)], np.int16
    )
    counts = np.zeros((LAYERS, EXPERTS), np.int64)
    together = np.zeros((LAYERS, EXPERTS, EXPERTS), np.int64)
    for layer in range(LAYERS):
        for chosen in routes[layer]:
            counts[layer, chosen] += 1
            together[layer][np.ix_(chosen, chosen)] += 1
        np.fill_diagonal(together[layer], 0)
    return RoutingTrace(
        layer_ids=tuple(range(LAYERS)),
        num_experts=EXPERTS,
        top_k=TOP_K,
        num_tokens_L=np.full(LAYERS, ROUTES),
        counts_LE=counts,
        coactivation_LEE=together,
        num_routes_L=np.full(LAYERS, ROUTES),
        routes_LWK=routes,
    )
