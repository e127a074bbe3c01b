"""Tests of the emulated cluster itself: it splits as nodes do, shapes its links, and leaves nothing."""

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.cluster import emulated_cluster, missing

ROOT = Path(__file__).parents[2]
LIMIT_S = 30
MB = 1 << 20
MPI_START = "from mpi4py import MPI; import json, socket, sys; world = MPI.COMM_WORLD\n"
SPLIT = """
node = world.Split_type(MPI.COMM_TYPE_SHARED)
found = world.gather((socket.gethostname(), node.size, node.rank))
if world.rank == 0: print(json.dumps(found))
"""
# 8 MB inside node 0, and 1 MB from it to node 1.
MESSAGES = """
near, far = bytearray(8 << 20), bytearray(1 << 20)
world.Barrier()
start = MPI.Wtime()
if world.rank == 0: world.Send(near, 1); world.Send(far, 3); world.recv(source=3)
if world.rank == 1: world.Recv(near, 0)
if world.rank == 3: world.Recv(far, 0); world.send(None, 0)
if world.rank == 0: print(MPI.Wtime() - start)
"""
# After a line on standard input rank 0 sends to the other node for a second, then aborts the job.
SEND_AND_ABORT = """
world.Barrier()
if world.rank == 0:
    print("up", flush=True)
    sys.stdin.readline()
    sending, start = world.Isend(bytearray(8 << 20), 1), MPI.Wtime()
    while MPI.Wtime() - start < 1 and not sending.Test(): pass
    print("sent" if sending.Test() else "stuck", flush=True)
    world.Abort(71)
world.Recv(bytearray(8 << 20), 0)
"""
WAIT = ["sh", "-c", "echo up; exec sleep 1000"]


@pytest.fixture(autouse=True)
def _able() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A text in the environment of every process that the test starts."""
    text = f"BED_TEST={uuid.uuid4().hex}"
    monkeypatch.setenv(*text.split("="))
    return text


def _program(text: str) -> list[str]:
    return [sys.executable, "-c", MPI_START + text]


def _marked(mark: str) -> list[int]:
    """Living processes that the test started, found by their environment and no other way."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _await_end(pids: list[int]) -> None:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], LIMIT_S)
        os.close(handle)
        assert ended, f"process {pid} outlives its bed"


def test_shared_memory_splits_by_node() -> None:
    with emulated_cluster([3, 1], "1gbit") as bed:
        done = bed.mpirun(_program(SPLIT), timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    expected = [["node0", 3, 0], ["node0", 3, 1], ["node0", 3, 2], ["node1", 1, 0]]
    assert json.loads(done.stdout) == expected


def test_only_messages_between_nodes_cross_the_shaped_link() -> None:
    with emulated_cluster([3, 1], "100mbit") as bed:
        before = bed.link_bytes(0), bed.link_bytes(1)
        done = bed.mpirun(_program(MESSAGES), timeout_s=LIMIT_S)
        after = bed.link_bytes(0), bed.link_bytes(1)
    assert done.returncode == 0, done.stderr
    assert MB < after[0][0] - before[0][0] < 2 * MB
    assert MB < after[1][1] - before[1][1] < 2 * MB
    # A lower bound: what the bucket holds passes at once, the rest at 12.5 MB/s.
    assert float(done.stdout) > 0.9 * MB / 12.5e6


def test_exit_code_and_time_limit() -> None:
    with emulated_cluster([1, 1], "1gbit") as bed:
        assert bed.mpirun(["sh", "-c", "exit 5"], timeout_s=LIMIT_S).returncode == 5
        assert bed.mpirun(["sleep", "1000"], timeout_s=1).returncode != 0


@pytest.mark.parametrize(("cut", "fate"), [(True, "stuck"), (False, "sent")])
def test_a_job_with_a_cut_link_can_abort(cut: bool, fate: str) -> None:
    with emulated_cluster([1, 1], "1gbit") as bed:
        job = bed.popen(
            _program(SEND_AND_ABORT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        assert len(bed.pids(1, "mpi4py")) == 1
        if cut:
            bed.cut(1)
        out, _ = job.communicate("\n", timeout=LIMIT_S)
        assert out.strip() == fate
        assert job.returncode == 71
        bed.mend(1)
        done = bed.mpirun(_program(SPLIT), timeout_s=LIMIT_S)
        assert done.returncode == 0, done.stderr


def test_a_stopped_rank_is_found_and_two_beds_do_not_meet(mark: str) -> None:
    with emulated_cluster([1], "1gbit") as other, emulated_cluster([1, 1], "1gbit") as bed:
        job = bed.popen(WAIT, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        assert other.pids(0, "sleep 1000") == []
        (sleeper,) = bed.pids(1, "sleep 1000")
        assert bed.pids(0, "sleep 1000") != [sleeper]
        os.kill(sleeper, signal.SIGSTOP)
    assert _marked(mark) == []


def test_nothing_is_left_after_an_exception(mark: str) -> None:
    devices = os.listdir("/sys/class/net")
    with pytest.raises(ZeroDivisionError), emulated_cluster([1, 2], "1gbit") as bed:
        job = bed.popen(WAIT, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None and job.stdout.readline() == "up\n"
        assert _marked(mark)
        raise ZeroDivisionError
    assert _marked(mark) == []
    assert os.listdir("/sys/class/net") == devices


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal_to_the_command(mark: str, number: signal.Signals) -> None:
    tool = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "--ranks", "1,2", "--", *WAIT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tool.stdout is not None
    assert [tool.stdout.readline() for _ in range(3)] == ["up\n"] * 3
    started = _marked(mark)
    tool.send_signal(number)
    code = tool.wait(LIMIT_S)
    if number == signal.SIGKILL:
        _await_end(started)
    else:
        assert code == 128 + number
    assert _marked(mark) == []


def test_the_command_without_a_job_explains_itself() -> None:
    command = [sys.executable, "-m", "tests.cluster", "--nodes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "COMMAND" in done.stdout
