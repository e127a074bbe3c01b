"""Traces add up, windows mix fairly, and what does not fit together is named."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.errors import UsageError
from janus_hpc.routing.trace import RoutingTrace, merge_traces

LAYERS, NUM_EXPERTS, TOP_K = (1, 4), 6, 3
Routes = list[list[list[int]]]


def draw_routes(rng: np.random.Generator, num_tokens: list[int]) -> Routes:
    """Per layer, tokens of K distinct experts in any order."""
    return [
        [rng.permutation(NUM_EXPERTS)[:TOP_K].tolist() for _ in range(count)]
        for count in num_tokens
    ]


def count(routes: Routes, window: int) -> RoutingTrace:
    """The trace of all these tokens, counted one by one."""
    counts = np.zeros((len(routes), NUM_EXPERTS), np.int64)
    together = np.zeros((len(routes), NUM_EXPERTS, NUM_EXPERTS), np.int64)
    kept = np.full((len(routes), window, TOP_K), -1, np.int16)
    for layer, tokens in enumerate(routes):
        chosen = Counter(expert for token in tokens for expert in token)
        for expert, times in chosen.items():
            counts[layer, expert] = times
        for token in tokens:
            for one, other in combinations(token, 2):
                together[layer, one, other] += 1
                together[layer, other, one] += 1
        for at, token in enumerate(tokens[-window:]):
            kept[layer, at] = token
    return RoutingTrace(
        layer_ids=LAYERS,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        num_tokens_L=np.array([len(tokens) for tokens in routes], np.int64),
        counts_LE=counts,
        coactivation_LEE=together,
        num_routes_L=np.array([min(len(tokens), window) for tokens in routes], np.int64),
        routes_LWK=kept,
    )


def make_trace(
    seed: int = 0, num_tokens: tuple[int, int] = (9, 4), window: int = 5
) -> RoutingTrace:
    return count(draw_routes(np.random.default_rng(seed), list(num_tokens)), window)


def test_a_counted_trace_checks() -> None:
    trace = make_trace()
    trace.check()
    assert trace.window == 5
    assert trace.routes_NK(0).shape == (5, TOP_K)
    assert trace.routes_NK(1).shape == (4, TOP_K)
    make_trace(num_tokens=(0, 0)).check()


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4),
    window=st.integers(1, 20),
)
def test_merged_counts_are_those_of_all_tokens(tokens: list[tuple[int, int]], window: int) -> None:
    rng = np.random.default_rng(len(tokens))
    parts = [draw_routes(rng, list(counts)) for counts in tokens]
    merged = merge_traces([count(part, window) for part in parts])
    merged.check()
    every = count([[token for part in parts for token in part[layer]] for layer in (0, 1)], window)
    for name in ("num_tokens_L", "counts_LE", "coactivation_LEE"):
        assert np.array_equal(getattr(merged, name), getattr(every, name)), name
    for layer in range(2):
        had = [min(len(part[layer]), window) for part in parts]
        assert merged.num_routes_L[layer] == min(sum(had), window)


def test_windows_are_mixed_in_turns() -> None:
    """Token t of part p is recognizable by its route; the latest of each part stay, oldest first."""
    long = [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]
    short = [[5, 4, 3]]
    other = [[2, 3, 4], [2, 3, 5], [2, 4, 5]]
    parts = [count([tokens, []], 4) for tokens in (long, short, other)]
    merged = merge_traces(parts)
    assert merged.routes_NK(0).tolist() == [[0, 1, 4], [2, 4, 5], [5, 4, 3], [0, 1, 5]]
    assert merged.num_routes_L.tolist() == [4, 0]
    assert np.all(merged.routes_LWK[1] == -1)
    wider = replace(parts[0], routes_LWK=count([long, []], 8).routes_LWK)
    merged = merge_traces([wider, parts[1], parts[2]])
    assert merged.window == 8
    assert sorted(merged.routes_NK(0).tolist()) == sorted([*long, *short, *other])


def test_merging_one_changes_nothing() -> None:
    trace = make_trace()
    merged = merge_traces([trace])
    assert np.array_equal(merged.routes_LWK, trace.routes_LWK)
    assert np.array_equal(merged.counts_LE, trace.counts_LE)


def test_traces_of_other_models_do_not_merge() -> None:
    with pytest.raises(AssertionError):
        merge_traces([make_trace(), replace(make_trace(), layer_ids=(1, 5))])


def changed(name: str, at: tuple[int, ...], value: int) -> dict[str, Any]:
    array = getattr(make_trace(), name).copy()
    array[at] = value
    return {name: array}


WRONG = [
    ({"layer_ids": (4, 1)}, r"layer ids \[4, 1\] are not ascending"),
    ({"layer_ids": (-1, 1)}, "not ascending"),
    ({"top_k": 7}, "7 choices among 6 experts"),
    ({"top_k": 0}, "0 choices among"),
    ({"num_experts": 40000}, "among 40000 experts"),
    ({"layer_ids": (1, 2, 4)}, r"num_tokens has shape \(2,\), expected \(3,\)"),
    ({"num_experts": 8}, r"counts has shape \(2, 6\), expected \(2, 8\)"),
    ({"coactivation_LEE": np.zeros((2, 6), np.int64)}, "coactivation has shape"),
    ({"num_routes_L": np.zeros(1, np.int64)}, "num_routes has shape"),
    ({"routes_LWK": np.zeros((2, 5), np.int16)}, "routes have 2 dimensions, not 3"),
    ({"routes_LWK": np.zeros((2, 5, 2), np.int16)}, "routes has shape"),
    (changed("counts_LE", (1, 2), 50), "counts of layer 4 do not fit its tokens"),
    (changed("counts_LE", (0, 0), -1), "counts of layer 1 do not fit"),
    (changed("num_tokens_L", (0,), 8), "counts of layer 1 do not fit"),
    (changed("coactivation_LEE", (0, 1, 1), 1), "co-activation of layer 1 does not fit"),
    (changed("coactivation_LEE", (1, 0, 1), 9), "co-activation of layer 4 does not fit"),
    (changed("num_routes_L", (0,), 6), "6 routes of layer 1, expected <= 5"),
    (changed("num_routes_L", (1,), 5), "5 routes of layer 4, expected <= 4"),
    (changed("num_routes_L", (1,), -1), "-1 routes of layer 4"),
    (changed("num_routes_L", (0,), 4), "expected 0 to 5 in the first 4 and -1 after"),
    (changed("routes_LWK", (1, 0, 0), 6), "layer 4: expert ids out of range"),
    (changed("routes_LWK", (0, 0, 0), -1), "layer 1: expert ids out of range"),
    (changed("routes_LWK", (1, 4, 1), 2), "layer 4: expert ids out of range"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(make_trace(), **change).check()


def test_a_route_may_name_an_expert_once_and_only_as_often_as_counted() -> None:
    trace = make_trace(num_tokens=(2, 2))
    routes = trace.routes_LWK.copy()
    routes[0, 0, 0] = routes[0, 0, 1]
    with pytest.raises(UsageError, match="routes of layer 1 do not fit its counts"):
        replace(trace, routes_LWK=routes).check()
    lone = count([[[0, 1, 2]], []], 2)
    routes = lone.routes_LWK.copy()
    routes[0, 0, 0] = 5
    with pytest.raises(UsageError, match="routes of layer 1 do not fit its counts"):
        replace(lone, routes_LWK=routes).check()
