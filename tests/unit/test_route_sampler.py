"""The sampler counts as a plain loop does, keeps the latest routes, and stays within its share of time."""

from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch

from janus_hpc.experts.route_sampler import RouteSampler
from janus_hpc.routing.trace import RoutingTrace

LAYERS, NUM_EXPERTS, TOP_K = [0, 2, 5], 12, 4
ALWAYS = float("inf")

Tokens = dict[int, list[list[int]]]


class Clock:
    """Time that passes only where a test says so, and by `tick_s` at each look."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def draw(generator: torch.Generator, num_tokens: int) -> torch.Tensor:
    """Distinct experts in any order."""
    scores = torch.rand(num_tokens, NUM_EXPERTS, generator=generator)
    return scores.argsort(dim=1)[:, :TOP_K].int()


def make(**options: object) -> RouteSampler:
    arguments: dict[str, object] = {"share": ALWAYS, "clock": Clock(tick_s=1.0), **options}
    return RouteSampler(LAYERS, NUM_EXPERTS, TOP_K, **arguments)  # type: ignore[arg-type]


def feed(sampler: RouteSampler, sizes: list[int], seed: int = 0) -> Tokens:
    """Passes of the given sizes through all layers; returns what each layer saw."""
    generator = torch.Generator().manual_seed(seed)
    seen: Tokens = {layer: [] for layer in LAYERS}
    for size in sizes:
        for layer in LAYERS:
            ids_NK = draw(generator, size)
            sampler.record(layer, ids_NK)
            seen[layer] += ids_NK.tolist()
    return seen


def check_counts(trace: RoutingTrace, seen: Tokens) -> None:
    trace.check()
    for index, tokens in enumerate(seen.values()):
        counts = Counter(expert for token in tokens for expert in token)
        pairs = Counter(frozenset(pair) for token in tokens for pair in combinations(token, 2))
        assert trace.num_tokens_L[index] == len(tokens)
        for one in range(NUM_EXPERTS):
            assert trace.counts_LE[index, one] == counts[one]
            for other in range(NUM_EXPERTS):
                expected = 0 if one == other else pairs[frozenset((one, other))]
                assert trace.coactivation_LEE[index, one, other] == expected


@pytest.mark.parametrize("window", [8, 9, 20, 4096])
def test_everything_sampled_is_what_a_plain_loop_counts(window: int) -> None:
    """Small windows wrap, and fold many times, at different passes in different layers."""
    sampler = make(window=window, max_tokens_per_pass=8)
    seen = feed(sampler, [8, 0, 3, 8, 1, 5, 7, 8, 8, 2])
    trace = sampler.trace()
    check_counts(trace, seen)
    assert trace.layer_ids == tuple(LAYERS)
    assert sampler.num_sampled_passes == 9, "a pass without tokens is none"
    for index, tokens in enumerate(seen.values()):
        assert trace.routes_NK(index).tolist() == tokens[-window:]


def test_a_trace_may_be_taken_at_any_time() -> None:
    sampler = make(window=10, max_tokens_per_pass=8)
    empty = sampler.trace()
    empty.check()
    assert not empty.num_tokens_L.any()
    seen = feed(sampler, [8, 4])
    check_counts(sampler.trace(), seen)
    more = feed(sampler, [8, 8, 6], seed=1)
    check_counts(sampler.trace(), {layer: seen[layer] + more[layer] for layer in LAYERS})
    sampler.clear()
    assert not sampler.trace().num_tokens_L.any()
    check_counts(sampler.trace(), feed(make(), []))
    again = feed(sampler, [5, 8], seed=2)
    check_counts(sampler.trace(), again)


def test_a_trace_does_not_change_with_later_passes() -> None:
    sampler = make(window=8, max_tokens_per_pass=8)
    seen = feed(sampler, [8])
    trace = sampler.trace()
    feed(sampler, [8, 8], seed=1)
    sampler.trace()
    check_counts(trace, seen)
    assert trace.routes_NK(0).tolist() == seen[LAYERS[0]]


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 17, 100])
def test_rows_of_large_passes_are_evenly_spaced(num_tokens: int) -> None:
    """All layers take the same rows, and other passes other ones."""
    sampler = make(max_tokens_per_pass=8)
    every_route = list(combinations(range(NUM_EXPERTS), TOP_K))
    ids_NK = torch.tensor(every_route[:num_tokens], dtype=torch.int32)
    first_rows = set()
    for _ in range(num_tokens):
        before = sampler.trace().num_tokens_L.tolist()
        for layer in LAYERS:
            sampler.record(layer, ids_NK)
        trace = sampler.trace()
        taken = [trace.routes_NK(index)[start:].tolist() for index, start in enumerate(before)]
        assert taken[0] == taken[1] == taken[2]
        assert 0 < len(taken[0]) <= 8
        found = [ids_NK.tolist().index(route) for route in taken[0]]
        assert {b - a for a, b in pairwise(found)} <= {-(-num_tokens // 8)}
        first_rows.add(found[0])
    assert first_rows == set(range(-(-num_tokens // 8)))


def run_passes(
    sampler: RouteSampler, clock: Clock, num_passes: int, pass_s: float, microbatches: int
) -> float:
    """Passes of equal length, microbatches in turns in each layer; returns the largest excess of
    the time spent over 1 % of the time gone by.
    """
    ids_NK = torch.arange(16 * TOP_K, dtype=torch.int32).reshape(16, TOP_K) % NUM_EXPERTS
    started_s, worst_s = clock.now_s, 0.0
    for _ in range(num_passes):
        for layer in LAYERS:
            for _ in range(microbatches):
                clock.now_s += pass_s / len(LAYERS)
                sampler.record(layer, ids_NK)
        worst_s = max(worst_s, sampler.spent_s - 0.01 * (clock.now_s - started_s))
    return worst_s


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("pass_s", [0.3e-3, 10e-3, 200e-3])
def test_time_stays_within_its_share(pass_s: float, microbatches: int) -> None:
    """With looks at the clock 50 us apart, sampling a pass of three layers costs 150 us."""
    clock = Clock(tick_s=50e-6)
    sampler = make(share=0.008, clock=clock, window=64, max_tokens_per_pass=8)
    num_passes = 2000
    worst_s = run_passes(sampler, clock, num_passes, pass_s, microbatches)
    one_pass_s = 50e-6 * len(LAYERS)
    assert worst_s <= microbatches * one_pass_s
    assert 0 < sampler.num_sampled_passes <= num_passes * microbatches
    trace = sampler.trace()
    trace.check()
    assert len(set(trace.num_tokens_L.tolist())) == 1, "all layers follow one decision"
    assert trace.num_tokens_L[0] == sampler.num_sampled_passes * 8
    share = sampler.num_sampled_passes / (num_passes * microbatches)
    if pass_s < 1e-3:
        assert share < 0.1
    if pass_s > 0.1:
        assert share == 1.0


def test_without_time_only_the_first_pass_is_sampled() -> None:
    sampler = make(share=0.0)
    feed(sampler, [0, 4, 4, 0, 4])
    assert sampler.num_sampled_passes == 1
    assert sampler.trace().num_tokens_L.tolist() == [4, 4, 4]
    sampler.clear()
    assert sampler.num_sampled_passes == 0
    feed(sampler, [0, 5, 4])
    assert sampler.trace().num_tokens_L.tolist() == [5, 5, 5]


def test_the_time_of_folding_counts() -> None:
    clock = Clock()
    sampler = make(share=0.01, clock=clock)
    feed(sampler, [4])
    clock.tick_s = 2.0
    sampler.trace()
    assert sampler.spent_s == 2.0
    clock.tick_s = 0.0
    clock.now_s += 190.0
    feed(sampler, [4])
    assert sampler.num_sampled_passes == 1
    clock.now_s += 10.0
    feed(sampler, [4])
    assert sampler.num_sampled_passes == 2


def test_layers_skipped_once_still_get_their_share() -> None:
    """A pass that broke off shifts later layers by one; they are sampled as often as before."""
    clock = Clock(tick_s=50e-6)
    sampler = make(share=0.008, clock=clock, max_tokens_per_pass=8)
    sampler.record(LAYERS[0], draw(torch.Generator().manual_seed(0), 8))
    run_passes(sampler, clock, 2000, 1e-3, 1)
    tokens = sampler.trace().num_tokens_L
    assert tokens.min() > 0 and tokens.max() - tokens.min() <= 8


def test_a_wrong_number_of_choices_is_refused() -> None:
    with pytest.raises(AssertionError):
        make().record(0, torch.zeros((3, TOP_K + 1), dtype=torch.int32))
    with pytest.raises(AssertionError):
        make(window=4, max_tokens_per_pass=8)


def test_after_a_clear_between_two_layers_all_layers_have_the_same_tokens() -> None:
    """Warming up may stop after any layer."""
    sampler = make()
    feed(sampler, [3, 3])
    sampler.record(LAYERS[0], draw(torch.Generator(), 3))
    sampler.clear()
    feed(sampler, [2, 4])
    assert sampler.trace().num_tokens_L.tolist() == [6, 6, 6]
