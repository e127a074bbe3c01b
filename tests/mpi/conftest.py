"""Runs a test body on every rank of an mpirun: selection by world size, and no hanging.

Start with `mpirun -n N python -m mpi4py -m pytest -x tests/mpi`.
"""

import faulthandler
from collections.abc import Generator, Iterator

import pytest
from mpi4py import MPI

from janus_hpc.comm.world import World

_HANG_S = 100


@pytest.fixture(scope="session")
def world() -> World:
    """The world, started once."""
    return World.start()


@pytest.fixture(autouse=True)
def _same_start(world: World) -> Iterator[None]:
    """Every rank begins a test together; a hang prints where each rank stands."""
    faulthandler.dump_traceback_later(_HANG_S)
    world.barrier()
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests marked for this world size; an unmarked one runs with any."""
    size = MPI.COMM_WORLD.size
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("world_size")
        (kept if marker is None or size in marker.args else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure on one rank ends all: the others would wait for it."""
    report = yield
    if report.failed and MPI.COMM_WORLD.size > 1:
        place = f"[rank {MPI.COMM_WORLD.rank}] {item.nodeid} ({report.when})"
        print(f"\n{place}\n{report.longreprtext}", flush=True)
        MPI.COMM_WORLD.Abort(1)
    return report
