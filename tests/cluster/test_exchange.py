"""The exchange over real nodes of an emulated cluster, uneven ones and mixed roles included."""

import sys

import pytest

from tests.cluster import emulated_cluster, missing
from tests.cluster.exchange_program import LINKS

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize(
    ("ranks", "letters"),
    [
        pytest.param([3, 1], ["aeea", "aaee"], id="3+1 ranks, mixed and apart"),
        pytest.param([1, 1, 2], ["aeae"], id="three nodes"),
    ],
)
def test_every_kind_gate_and_link_gives_exact_sums(ranks: list[int], letters: list[str]) -> None:
    with emulated_cluster(ranks, "1gbit") as bed:
        program = [sys.executable, "-m", "tests.cluster.exchange_program", *letters]
        done = bed.mpirun(program, timeout_s=150)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("ok")]
    assert len(lines) == len(letters) * 3 * 2 * len(LINKS) * 3, done.stdout
