"""The doctor's own parts: trying out a folder, reading the kernel's tables, options, text, JSON, the watchdog."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from janus_hpc.comm.libraries import MPI_FILES
from janus_hpc.doctor import cores, probe
from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context, Places, Target, places_alone
from janus_hpc.doctor.finding import Finding, Level, error, fine, note, size, warning
from janus_hpc.doctor.mounts import file_system_of, is_shared_kind
from janus_hpc.doctor.report import lines_of, ranges, summary, to_json
from janus_hpc.doctor.run import FAILED, _found, examine, exit_code
from janus_hpc.doctor.shm import look
from janus_hpc.doctor.table import CHECKS, chosen
from janus_hpc.doctor.watchdog import Watchdog
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.lock import run_lock

NAME = "probe"


def test_a_good_folder_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    assert probe.try_write(tmp_path, NAME) == ""
    assert probe.read_back(tmp_path, NAME)
    assert probe.try_exclusive(tmp_path, NAME) == ""
    assert probe.try_hdf5(tmp_path, "probe.h5") == ("", True)
    fd, problem = probe.hold_lock(tmp_path, NAME)
    assert problem == "" and probe.is_locked(tmp_path, NAME)
    os.close(fd)
    assert not probe.is_locked(tmp_path, NAME)
    assert probe.try_rename(tmp_path, NAME) == ""
    assert not probe.read_back(tmp_path, NAME)
    probe.remove(tmp_path, NAME)
    assert list(tmp_path.iterdir()) == []


def test_bad_folders_are_told_in_one_line(tmp_path: Path) -> None:
    assert probe.try_write(tmp_path / "nowhere", NAME) == "No such file or directory"
    assert probe.try_write(Path("/proc/self"), NAME) != ""
    assert "h5py" in probe.try_hdf5(tmp_path / "nowhere", NAME)[0]
    assert probe.hold_lock(tmp_path / "nowhere", NAME)[0] == -1
    assert not probe.read_back(tmp_path, NAME)


def test_hdf5_without_locks_is_noticed(tmp_path: Path) -> None:
    """HDF5 reads its setting when it is loaded, so in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from janus_hpc.doctor.probe import try_hdf5\n"
        "print(try_hdf5(Path(sys.argv[1]), 'x'))"
    )
    environ = os.environ | {"HDF5_USE_FILE_LOCKING": "FALSE"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "('', False)"


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lustre without flock, NFS without lockd: HDF5 works, and a run goes on with a warning."""

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert probe.try_hdf5(tmp_path, NAME) == ("", False)
    with run_lock(tmp_path):
        assert "has no locks (Function not implemented)" in caplog.text


def test_a_run_folder_without_rights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lock: cannot be written"), run_lock(Path("/proc/self")):
        pass


@pytest.mark.parametrize(
    ("name", "is_mpi"),
    [
        ("libmpi.so.12", True),
        ("libmpi_abi.so.1", True),
        ("libmpich.so.12", True),
        ("libmpi_gnu_123.so.12", True),
        ("libmpi_cray.so.12", True),
        ("libmpi_gtl_cuda.so.0", False),
        ("libmpifort.so.12", False),
        ("libmpi_cxx.so.40", False),
        ("libmpi_mpifh.so.40", False),
    ],
)
def test_files_of_mpi(name: str, is_mpi: bool) -> None:
    assert (re.fullmatch(MPI_FILES, name) is not None) is is_mpi


def test_leftovers_in_shared_memory(tmp_path: Path) -> None:
    for name in ("old", "new", "mapped"):
        (tmp_path / name).write_bytes(bytes(8192))
    for name in ("old", "mapped"):
        os.utime(tmp_path / name, (0, 0))
    with (tmp_path / "mapped").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert look(tmp_path).left == (("old", 8192),)
    assert not look(tmp_path / "nowhere").exists


def test_the_kernels_tables() -> None:
    assert cores.parse_cpu_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert cores.parse_cpu_list("\n") == frozenset()
    assert cores.own_cpus() <= cores.allowed_cpus() | cores.own_cpus()
    table = (
        "22 27 0:21 / / rw - ext4 /dev/sda rw\n"
        "23 27 0:22 / /scratch rw shared:1 - lustre a@o2ib:/s rw\n"
        "24 27 0:23 / /scratch/my\\040own rw - nfs4 host:/x rw\n"
        "25 27 0:23 / /scratch rw - beegfs x rw\n"
        "broken line\n"
    )
    assert file_system_of(Path("/etc"), table) == "ext4"
    assert file_system_of(Path("/scratch/x"), table) == "beegfs"
    assert file_system_of(Path("/scratch/my own/x"), table) == "nfs4"
    assert file_system_of(Path("/scratchy"), table) == "ext4"
    assert file_system_of(Path("/etc"), "") == ""
    assert is_shared_kind("nfs4") and not is_shared_kind("ext4")


def test_cpu_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/cpu.max").write_text("250000 100000\n")
    (tmp_path / "a/b/cpu.max").write_text("max 100000\n")
    (tmp_path / "a/b/cpuset.cpus.effective").write_text("2-5\n")
    (tmp_path / "self").write_text("0::/a/b\n")
    monkeypatch.setattr(cores, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "self")
    assert cores.quota_cores() == 2.5
    assert cores.allowed_cpus() == {2, 3, 4, 5}


def test_names_of_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
    assert [its.name for its in chosen(None, None)] == names
    assert [its.name for its in chosen("output,mpi", None)] == ["mpi", "output"]
    assert "mpi" not in [its.name for its in chosen(None, "mpi")]
    with pytest.raises(UsageError, match="--skip: 'mpj' is unknown; known are mpi"):
        chosen(None, "mpj")
    with pytest.raises(UsageError, match="leave no check"):
        chosen("mpi", "mpi")


def alone() -> Context:
    return Context(
        env=LaunchEnv(),
        places=places_alone("h"),
        world_rank=0,
        world=None,
        no_mpi="",
        target=Target(model_dir=Path(), output=Path("x.h5")),
        quick=True,
        timeout_s=1.0,
    )


def _crash(context: Context) -> int:
    raise KeyError("gone")


def _skip(context: Context) -> int:
    raise Skip("no such thing here")


def test_a_check_that_crashes_is_a_finding_and_the_others_go_on() -> None:
    checks = [
        Check(name="a", gather=_crash, judge=lambda facts, context: []),
        Check(name="b", gather=lambda context: 1, judge=lambda facts, context: [facts[7]]),
        Check(name="c", gather=_skip, judge=lambda facts, context: []),
        Check(name="d", gather=lambda context: 4, judge=lambda facts, context: [fine(f"{facts}")]),
    ]
    said: list[Finding] = []
    with Watchdog("test") as watchdog:
        found = examine(alone(), checks, said.append, watchdog)
    assert said == found
    assert [(its.check, its.level, its.what) for its in found] == [
        ("a", Level.ERROR, "the check failed: KeyError: 'gone'"),
        ("b", Level.ERROR, "the check failed: IndexError: list index out of range"),
        ("c", Level.INFO, "skipped: no such thing here"),
        ("d", Level.OK, "[4]"),
    ]
    assert found[0].hosts == ("h",)


def test_a_rank_that_failed_is_told_where_others_are_silent() -> None:
    """They may wait for the one that failed."""
    both = replace(alone(), places=Places(node_ids=(0, 1), hosts=("h", "i"), local_ranks=(0, 0)))
    check = Check(name="a", gather=_crash, judge=lambda facts, context: [])
    found, is_over = _found(check, {0: (FAILED, "OSError: stale")}, both)
    assert is_over
    assert ["1 on i" in found[0].what, "OSError: stale" in found[1].what] == [True, True]


def test_exit_codes() -> None:
    bad = warning("w", why="y", fix="z")
    assert exit_code([]) == exit_code([fine("f"), note("n")]) == 0
    assert exit_code([fine("f"), bad, note("n")]) == 1
    assert exit_code([error("e", why="y", fix="z"), bad]) == 2


def test_text() -> None:
    its = Finding(
        check="shm", level=Level.WARNING, what="w " * 60, why="y " * 60, fix="f", ranks=(0, 1, 4), hosts=("a", "b")
    )  # fmt: skip
    lines = lines_of(its, 8)
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("warning  shm        w w")
    assert [line.strip() for line in lines if "fix:" in line or "where:" in line] == [
        "fix: f",
        "where: ranks 0-1, 4 on a, b",
    ]
    assert not any("where:" in line for line in lines_of(its, 3))
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert summary([its, fine("x"), fine("y")], 8, 2) == (
        "doctor: 1 warning, 2 fine on 8 ranks on 2 nodes: a run works, but see the warnings"
    )
    assert (size(999), size(5e9), size(1.25e3)) == ("999 bytes", "5 GB", "1.25 kB")


def test_json() -> None:
    its = warning("w", why="y", fix="z", ranks=[2, 0])
    (read,) = json.loads(to_json([its]))
    assert read == {
        "check": "", "level": "warning", "what": "w", "why": "y", "fix": "z", "ranks": [0, 2], "hosts": []
    }  # fmt: skip


def test_the_watchdog_ends_a_process_that_python_cannot_interrupt(tmp_path: Path) -> None:
    """Opening a FIFO that nobody writes to: a stand-in for a file server that does not answer."""
    os.mkfifo(tmp_path / "fifo")
    code = (
        "import sys; from janus_hpc.doctor.watchdog import Watchdog\n"
        "with Watchdog('process 3 on h') as watchdog:\n"
        "    watchdog.expect('check x', 0.2)\n"
        "    open(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fifo")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9
    assert done.stderr == "janus-hpc doctor: process 3 on h: check x takes more than 0.2 s; ended\n"
