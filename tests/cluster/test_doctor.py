"""The doctor on several nodes with links of their own: a slow one is found, and told from the others."""

import json
import sys
from pathlib import Path

import pytest

from tests.cluster import emulated_cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

JANUS = str(Path(sys.executable).with_name("janus-hpc"))
DOCTOR = [JANUS, "doctor", "--only", "ranks,clocks,output,bandwidth", "--json", "found.json"]
SLOW = 2


def test_nodes_and_the_one_with_a_slow_link(tmp_path: Path) -> None:
    with emulated_cluster([1, 1, 1, 1], "400mbit") as bed:
        done = bed.mpirun(DOCTOR, timeout_s=120, cwd=tmp_path)
        found = json.loads((tmp_path / "found.json").read_text())
        assert done.returncode == 0, done.stdout + done.stderr
        assert [its["check"] for its in found] == ["ranks", "output", "clocks", "bandwidth"]
        assert "seen by all 4 nodes" in found[1]["what"]

        bed.slow_down(SLOW, "40mbit")
        done = bed.mpirun(DOCTOR, timeout_s=120, cwd=tmp_path)
        found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    slow = [its for its in found if its["level"] == "warning"]
    host = found[0]["what"].split(", ")[1 + SLOW].rsplit(" ", 1)[-1]
    for its in slow:
        assert its["check"] == "bandwidth" and SLOW in its["ranks"], its
        assert "3 of 6 pairs" in its["what"], its
        assert f"have {host} in common" in its["fix"], its
    assert slow[0]["what"].startswith("mpi between nodes")
