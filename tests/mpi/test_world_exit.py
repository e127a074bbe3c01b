"""How a program on many ranks ends: exit code and message seen by whoever started mpirun.

Starts its own mpirun for every case, so it runs in a world of one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.world_size(1)

PROGRAM = """
import errno, os, signal, sys, threading
from janus_hpc.comm.guard import guard
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError
from janus_hpc.topology import Role

world = World.start()
topology = world.topology([Role.ATTENTION] + [Role.EXPERT] * (world.world_size - 1))
case, last = sys.argv[1], world.world_rank == world.world_size - 1
with guard(world):
    if case == "agreed":
        world.agree(UsageError("no such model") if last else None)
    if case == "alone" and last:
        raise UsageError("disk full")
    if case == "refused" and last:
        raise OSError(errno.ENOSPC, "No space left on device", "out.jnl")
    if case == "bug" and last:
        world.pulse.where = "step 3 layer 2"
        raise KeyError("w1")
    if case == "thread" and last:
        thread = threading.Thread(target=lambda: 1 // 0)
        thread.start()
    if case == "killed" and last:
        os.kill(os.getpid(), signal.SIGKILL)
    if case.startswith("timeout"):
        import torch
        from janus_hpc.comm.exchange import StepHeader
        from janus_hpc.comm.make import make_exchange
        exchange = make_exchange(world, topology, kind=case.split()[1], hidden=8,
            row_dtype=torch.float32, max_tokens_per_rank=4, timeout_s=0.5)
        header = StepHeader(4) if world.world_rank == 0 else None
        exchange.open_step(header)
        if world.world_rank == 0:
            exchange.send_tokens(5, 0, torch.zeros(4, 8))
            exchange.recv_outputs(5, 0)
        elif not last:
            x_ND, _ = exchange.recv_tokens(5, 0)
            exchange.send_outputs(5, 0, x_ND.double())
    if case != "fine":
        world.barrier()
"""


def launch(tmp_path: Path, case: str, num_ranks: int = 3) -> tuple[int, str]:
    """Exit code and stderr of the program under mpirun, without this process's launch variables."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    assert mpirun is not None, "no mpirun on the path"
    ours = ("PMI", "HYD", "MPI_", "OMPI_", "PRTE_")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environ |= {"MPIEXEC_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
    command = [mpirun, "-n", str(num_ranks), sys.executable, str(program), case]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=90, check=False
    )
    return done.returncode, done.stderr


def test_a_clean_end(tmp_path: Path) -> None:
    assert launch(tmp_path, "fine") == (0, "")


def test_an_agreed_error_is_said_once(tmp_path: Path) -> None:
    exit_code, stderr = launch(tmp_path, "agreed")
    assert exit_code == 2
    assert stderr.count("no such model") == 1
    assert "Traceback" not in stderr and "Abort" not in stderr


def test_an_error_of_one_rank_ends_all_with_its_code(tmp_path: Path) -> None:
    exit_code, stderr = launch(tmp_path, "alone")
    assert exit_code == 2
    assert "[expert 1/2@" in stderr and ": disk full" in stderr
    # MPI_Abort of MPICH returns: nothing may come after it.
    assert "Traceback" not in stderr


def test_what_the_file_system_refuses_ends_all_without_a_traceback(tmp_path: Path) -> None:
    exit_code, stderr = launch(tmp_path, "refused")
    assert exit_code == 70
    assert "out.jnl: No space left on device (errno 28)" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize(("case", "error"), [("bug", "KeyError"), ("thread", "ZeroDivisionError")])
def test_a_bug_ends_all_with_a_traceback(tmp_path: Path, case: str, error: str) -> None:
    exit_code, stderr = launch(tmp_path, case)
    assert exit_code == 70
    assert "[expert 1/2@" in stderr and stderr.count("Traceback") == 1 and error in stderr
    assert ("] step 3 layer 2:" in stderr) == (case == "bug")


def test_a_killed_rank_ends_all(tmp_path: Path) -> None:
    exit_code, _ = launch(tmp_path, "killed")
    assert exit_code != 0


@pytest.mark.parametrize("kind", ["host", "shm"])
def test_a_silent_peer_is_named(tmp_path: Path, kind: str) -> None:
    exit_code, stderr = launch(tmp_path, f"timeout {kind}")
    assert exit_code == 71
    line = next(text for text in stderr.splitlines() if "waits for" in text)
    assert "layer 5, microbatch 0" in line and "bytes" in line and "0.5 s" in line
    assert "expert 1/2@" in line.partition("waits for")[2]
