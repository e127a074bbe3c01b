"""One Slurm for all tests of this folder; where it is not installed they are skipped, saying so."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_program, running_cluster


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
