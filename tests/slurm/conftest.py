"""One Slurm for all tests of this folder; where it is not installed they are skipped, saying so."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.launcher import export_text, run_janus, write_rows
from tests.slurm.cluster import Cluster, missing_program, running_cluster
from tests.slurm.runs import make_rows

NUM_ROWS, NUM_FEW = 24, 8


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running Slurm whose jobs find this Python environment, as after activating it."""
    missing = missing_program()
    if missing is not None:
        pytest.skip(f"no {missing} on this machine: bash tests/slurm/install.sh installs Slurm")
    with running_cluster() as its:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        its.environ |= {"PATH": path, "VIRTUAL_ENV": sys.prefix}
        yield its


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with rows.jsonl and its first lines in few.jsonl, and the export of a run without Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    rows = make_rows(NUM_ROWS)
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "few.jsonl", rows[:NUM_FEW])
    run_janus(0, "infer", "rows.jsonl", "-o", "plain.h5", cwd=folder)
    return folder, export_text(folder / "plain.h5", folder)
