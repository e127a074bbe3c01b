"""Cost tables: what is written is read back, and broken files are refused with their fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from janus_hpc.comm.costs import ExchangeCosts, LinkCosts, MemoryCosts
from janus_hpc.errors import UsageError
from janus_hpc.planner.cost_table import CostTable, read_table, write_table

TABLE = CostTable(
    made="2026-01-02T03:04:05+00:00",
    library="MPICH 4.3",
    hosts=("n0", "n1"),
    node_ids=(0, 1),
    costs=ExchangeCosts(
        links={
            "mpi": LinkCosts(
                across=((1024, 2e-5), (4096, 3e-5)), across_busy_s=4e-5, node_rate=1.25e8
            )
        },
        memory=MemoryCosts(copy_rate=5e9, add_rate=6e9, signal_s=1e-6),
    ),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_table(tmp_path / "t.json", TABLE)
    assert read_table(tmp_path / "t.json") == TABLE


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no/t\.json: cannot be written: No such file"):
        write_table(tmp_path / "no" / "t.json", TABLE)
    with pytest.raises(UsageError, match=r"no/t\.json: cannot be read: No such file"):
        read_table(tmp_path / "no" / "t.json")


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (["version"], 2, "version 2, not"),
        (["format"], "other", "'other' version 1, not"),
        (["made"], None, r"\$.made"),
        (["extra"], 1, "unknown field `extra`"),
        (["costs", "memory", "copy_rate"], 0.0, "memory has a rate"),
        (["costs", "memory", "copy_rate"], 1e-28, "memory has a rate"),
        (["costs", "memory", "signal_s"], "fast", r"\$.costs.memory.signal_s"),
        (["costs", "links", "mpi", "node_rate"], 0.0, "links.mpi has no rate"),
        (["costs", "links", "mpi", "across"], [[2, 1e-5], [1, 1e-5]], "links.mpi.across is not"),
        (["costs", "links", "mpi", "inside"], [[2, 0.0]], "links.mpi.inside is not"),
    ],
)
def test_a_broken_file(tmp_path: Path, keys: list[str], value: Any, fault: str) -> None:
    path = tmp_path / "t.json"
    write_table(path, TABLE)
    values = json.loads(path.read_text())
    target = values
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=fault) as raised:
        read_table(path)
    assert str(path) in str(raised.value)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_table(path, TABLE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="truncated"):
        read_table(path)
