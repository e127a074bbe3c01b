"""a_max by simulation and by formula: against counting by hand, the C library against plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from janus_hpc.kernels.assign import POLICIES
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.kernels.native.build import BuildError, build_library
from janus_hpc.kernels.slot_lists import SlotLists

from janus_hpc.bench.balance import dealt_placement, random_placement
from janus_hpc.bench.exact_balance import exact_a_max
from janus_hpc.planner.a_max import a_max_bound, a_max_of_draws, simulate_a_max
from janus_hpc.routing.trace import RoutingTrace


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> BalanceLibrary:
    try:
        return BalanceLibrary(build_library(tmp_path_factory.mktemp("cache")))
    except BuildError as error:
        pytest.skip(str(error))


def uniform_routes(num_tokens: int, num_experts: int, top_k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = rng.random((num_tokens, num_experts))
    return np.sort(np.argsort(scores, axis=1)[:, :top_k], axis=1).astype(np.int16)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), policy=st.sampled_from(POLICIES), num_ranks=st.integers(1, 9))
def test_the_library_counts_as_plain_python(
    library: BalanceLibrary, seed: int, policy: str, num_ranks: int
) -> None:
    num_slots = min(20, 20 // num_ranks + 1)
    lists = SlotLists(random_placement(20, num_ranks, num_slots, seed).tolist(), 20)
    draws = np.stack([uniform_routes(7, 20, 3, seed + i) for i in range(5)])
    plain = a_max_of_draws(draws, lists, policy, draw=seed)
    found = a_max_of_draws(draws, lists, policy, library=library, draw=seed)
    assert found.tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("num_ranks", "at_16", "at_64"),
    [(6, 15.2, 25.8), (8, 11.1, 19.5), (12, 8.0, 13.4), (16, 6.0, 10.0)],
)
def test_greedy_gives_the_simulated_figures_of_deepseek_v2(
    library: BalanceLibrary, num_ranks: int, at_16: float, at_64: float
) -> None:
    """Janus, Algorithm 1, simulated with uniform routing: 160 experts, 6 a token, 27 slots."""
    lists = SlotLists(dealt_placement(160, num_ranks, 27).tolist(), 160)
    for batch, expected in ((16, at_16), (64, at_64)):
        draws = uniform_routes(100 * batch, 160, 6, batch).reshape(100, batch, 6)
        found = a_max_of_draws(draws, lists, "greedy", library=library).mean()
        assert found == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("redundancy", [0.12, 0.5, 1.0])
@pytest.mark.parametrize("num_experts", [64, 160, 256])
def test_aebs_is_optimal_over_batch_sizes(
    library: BalanceLibrary, num_experts: int, redundancy: float
) -> None:
    for num_ranks in (8, 16):
        num_slots = math.ceil(num_experts * (1 + redundancy) / num_ranks)
        slots_RC = random_placement(num_experts, num_ranks, num_slots, 3)
        lists = SlotLists(slots_RC.tolist(), num_experts)
        hosts_ER = np.array(lists.slot_of_ER).reshape(num_experts, -1) >= 0
        for batch in (8, 32, 128, 1024):
            ids_DNK = uniform_routes(3 * batch, num_experts, 8, batch).reshape(3, batch, 8)
            found = a_max_of_draws(ids_DNK, lists, "aebs", library=library)
            exact = [exact_a_max(np.unique(ids).tolist(), hosts_ER) for ids in ids_DNK]
            assert found.tolist() == exact


def test_a_simulation_stops_when_it_is_sure(library: BalanceLibrary) -> None:
    lists = SlotLists([[0, 1], [2, 3]], 4)
    same_WK = np.tile(np.array([[0, 2]], dtype=np.int16), (50, 1))
    found = simulate_a_max(same_WK, lists, 10, library=library)
    assert (found.mean, found.standard_error) == (1.0, 0.0) and found.num_draws < 256
    noisy = simulate_a_max(uniform_routes(64, 4, 1, 0), lists, 2, library=library)
    assert noisy.num_draws == 256
    # Two of four experts at random: both on one rank in one case of three, an expert twice one of four.
    assert noisy.mean == pytest.approx(1.25, abs=0.12)


def test_the_bound_is_above_what_is_simulated_and_close_where_all_are_active(
    library: BalanceLibrary,
) -> None:
    routes_WK = uniform_routes(4096, 160, 6, 1)
    for num_ranks in (6, 8, 12, 16):
        lists = SlotLists(dealt_placement(160, num_ranks, 27).tolist(), 160)
        for batch in (8, 64, 512):
            found = simulate_a_max(routes_WK, lists, batch, library=library)
            bound = a_max_bound(np.full(160, 6 / 160), lists, batch)
            assert found.mean <= bound <= 27 + 1
            if batch == 512:
                assert bound <= found.mean + 2


def test_the_bound_by_hand() -> None:
    """Two ranks of one expert each, always chosen: one activated each, one deviation at most."""
    lists = SlotLists([[0], [1]], 2)
    assert a_max_bound(np.array([1.0, 1.0]), lists, 4) == 2.0
    half = a_max_bound(np.array([0.5, 0.5]), lists, 1)
    assert half == pytest.approx(min(1.0, 0.5 + math.sqrt(math.log(2))) + 1)


def trace_of(routes_LWK: np.ndarray, num_experts: int) -> RoutingTrace:
    num_layers, window, top_k = routes_LWK.shape
    counts_LE = np.stack([np.bincount(its.ravel(), minlength=num_experts) for its in routes_LWK])
    pairs_LEE = np.zeros((num_layers, num_experts, num_experts), dtype=np.int64)
    for index, ids_WK in enumerate(routes_LWK):
        for ids_K in ids_WK:
            for a in ids_K:
                for b in ids_K:
                    pairs_LEE[index, a, b] += a != b
    return RoutingTrace(
        layer_ids=tuple(range(num_layers)),
        num_experts=num_experts,
        top_k=top_k,
        num_tokens_L=np.full(num_layers, window),
        counts_LE=counts_LE,
        coactivation_LEE=pairs_LEE,
        num_routes_L=np.full(num_layers, window),
        routes_LWK=routes_LWK,
    )
