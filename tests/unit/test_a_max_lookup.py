"""Tables of a_max for searches, against simulations with many draws, and without the C library."""

import numpy as np
import pytest
from janus_hpc.kernels.native.balance_library import BalanceLibrary, open_balance_library
from janus_hpc.kernels.slot_lists import SlotLists

from janus_hpc.launch import read_launch
from janus_hpc.placement.make import make_placement
from janus_hpc.planner.a_max import simulate_a_max
from janus_hpc.planner.a_max_lookup import AMaxLookup, uniform_routing

ROUTING = uniform_routing(160, 6)


@pytest.fixture(scope="module")
def library() -> BalanceLibrary:
    found, why = open_balance_library(read_launch().cache_dir)
    assert found is not None, why
    return found


def ask(lookup: AMaxLookup, ranks: int, slots: int, batch: float) -> float:
    found = lookup.a_max(np.array([ranks]), np.array([slots]), np.array([batch]))
    return float(found[0])


@pytest.mark.parametrize(("ranks", "slots"), [(6, 27), (8, 20), (12, 27), (16, 10)])
@pytest.mark.parametrize("batch", [4, 16, 64, 100, 512])
def test_it_is_what_a_simulation_gives(
    library: BalanceLibrary, ranks: int, slots: int, batch: int
) -> None:
    placement = make_placement(
        "contiguous", num_layers=1, num_experts=160, num_ranks=ranks, num_slots=slots
    )
    lists = SlotLists(placement.slots_LRC[0].tolist(), 160)
    exact = simulate_a_max(ROUTING.windows[0], lists, batch, library=library)
    found = ask(AMaxLookup(ROUTING, library=library), ranks, slots, batch)
    assert found == pytest.approx(exact.mean, rel=0.06, abs=0.3)


def test_more_tokens_never_activate_less(library: BalanceLibrary) -> None:
    lookup = AMaxLookup(ROUTING, library=library)
    found = [ask(lookup, 8, 25, batch) for batch in np.geomspace(1, 1e5, 60)]
    assert found == sorted(found)


def test_without_the_library_it_is_never_below(library: BalanceLibrary) -> None:
    exact, bound = AMaxLookup(ROUTING, library=library), AMaxLookup(ROUTING)
    assert "bound" in bound.how and "draws" in exact.how
    for batch in (1, 8, 64, 512):
        assert ask(bound, 8, 20, batch) >= ask(exact, 8, 20, batch)
