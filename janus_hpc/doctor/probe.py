"""Trying out a folder the way a run uses it: create, sync, rename over, lock, measure. One process.

Each function says what is wrong in one line, "" where nothing is. Leaves no file behind that it made.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from janus_hpc.results.durable import write_atomic

# Enough that a full disk cannot hide it in the folder's own block.
_PAYLOAD = b"janus-hpc doctor\n" * 4096


def folder_of(output: Path) -> Path:
    """Where a run that writes `output` makes its first file or folder: it makes the folders that are missing."""
    folder = output.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def try_write(folder: Path, name: str) -> str:
    """Create and sync a file named `name` with a payload; it stays, for `try_rename` and `read_back`."""
    try:
        with (folder / name).open("xb") as file:
            file.write(_PAYLOAD)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _text(error)
    return ""


def read_back(folder: Path, name: str) -> bool:
    """Whether the file is seen here, whole."""
    try:
        return (folder / name).read_bytes() == _PAYLOAD
    except OSError:
        return False


def try_rename(folder: Path, name: str) -> str:
    """Replace the file by another one as results are replaced, and read the new one."""
    path = folder / name
    try:
        write_atomic(path, b"new\n")
        if path.read_bytes() != b"new\n":
            return "a file renamed over another one still has the old content"
    except OSError as error:
        return f"renaming over a file: {_text(error)}"
    return ""


def try_exclusive(folder: Path, name: str) -> str:
    """Create a file that exists: must be refused, or two runs could both believe they are the first."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return ""
    except OSError as error:
        return f"O_EXCL on a file that exists: {_text(error)}"
    return "O_EXCL creates a file that exists"


def hold_lock(folder: Path, name: str) -> tuple[int, str]:
    """A descriptor that holds the file's lock until it is closed, or -1 and why not."""
    fd = -1
    try:
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        return -1, f"flock: {_text(error)}"
    return fd, ""


def is_locked(folder: Path, name: str) -> bool:
    """Whether the file's lock is held by somebody else, as seen from here. OSError: no locks here."""
    fd = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def try_hdf5(folder: Path, name: str) -> tuple[str, bool]:
    """Write and read an HDF5 file: (what is wrong, whether HDF5 kept others out while it wrote)."""
    import h5py

    path = folder / name
    locked = False
    try:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=list(range(100)), chunks=(10,), fletcher32=True)
            file.flush()
            with suppress(OSError):  # no locks here, which `hold_lock` tells
                locked = is_locked(folder, name)
        with h5py.File(path, "r") as file:
            if file["x"][:].tolist() != list(range(100)):
                return "an HDF5 file reads back differently", locked
    # h5py passes on the errors of the C library as several classes.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return f"h5py: {' '.join(str(error).split())}", locked
    finally:
        remove(folder, name)
    return "", locked


def room(folder: Path) -> tuple[int, int | None]:
    """Bytes and files that may still be written; None where the file system does not count files."""
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize, stats.f_favail if stats.f_files else None


def remove(folder: Path, name: str) -> None:
    """Remove what a probe left; what cannot be removed stays."""
    with suppress(OSError):
        (folder / name).unlink()


def _text(error: OSError) -> str:
    return error.strerror or str(error)
