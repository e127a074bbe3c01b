"""Check `hdf5`: whether h5py writes, reads and locks files where the results will be."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor import probe
from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, note, warning
from janus_hpc.doctor.mounts import file_system_of

_OFF = ("FALSE", "0")
_SETTING = "HDF5_USE_FILE_LOCKING"


@dataclass(frozen=True, kw_only=True)
class Hdf5Facts:
    """`problem`: what h5py could not do; `keeps_out`: HDF5's lock is seen by others while it writes;
    `lock_problem`: why the file system gives no lock, "" where it does; `setting`: of the variable.
    """

    folder: str
    kind: str
    version: str
    setting: str
    problem: str
    keeps_out: bool
    lock_problem: str


def gather(context: Context) -> Hdf5Facts | None:
    """On rank 0, which writes the results file; None elsewhere."""
    if context.world_rank != 0:
        return None
    import h5py

    folder = probe.folder_of(context.target.output)
    name = f".janus-doctor-{uuid.uuid4().hex[:12]}"
    if wrong := probe.try_write(folder, name):
        raise Skip(f"no file can be written in {folder} ({wrong}; see output)")
    fd, lock_problem = probe.hold_lock(folder, name)
    if fd >= 0:
        os.close(fd)
    probe.remove(folder, name)
    problem, keeps_out = probe.try_hdf5(folder, f"{name}.h5")
    return Hdf5Facts(
        folder=str(folder),
        kind=file_system_of(folder),
        version=f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}",
        setting=context.env.settings.get(_SETTING, ""),
        problem=problem,
        keeps_out=keeps_out,
        lock_problem=lock_problem,
    )


def judge(facts: Sequence[Hdf5Facts | None], context: Context) -> list[Finding]:
    """Pure."""
    its = facts[0]
    assert its is not None, "rank 0 always has facts"
    where = f"{its.folder} ({its.kind or 'unknown kind'})"
    if its.problem:
        return [
            error(
                f"{where}: {its.problem}",
                why="the results file is HDF5",
                fix=_fix(its),
            )
        ]
    if its.lock_problem:
        return [
            warning(
                f"{where} has no file locks ({its.lock_problem})",
                why="a second run with the same output would not be refused",
                fix="mount it with locks (Lustre: -o flock), or take care that no two runs share an output",
            )
        ]
    if its.setting.upper() in _OFF:
        return [
            warning(
                f"{_SETTING}={its.setting}, but {where} has locks",
                why="a reader, or a second run, may open a file that is being written",
                fix=f"unset {_SETTING}; set BEST_EFFORT where some file systems have no locks",
            )
        ]
    if not its.keeps_out:
        return [note(f"{its.version} does not lock files in {where}")]
    return [fine(f"{its.version} writes, reads and locks in {where}")]


def _fix(its: Hdf5Facts) -> str:
    if "lock" in its.problem.lower():
        return f"set {_SETTING}=BEST_EFFORT, or mount the file system with locks (Lustre: -o flock)"
    return "write elsewhere with --output, or install h5py again"


CHECK = Check(name="hdf5", gather=gather, judge=judge)
