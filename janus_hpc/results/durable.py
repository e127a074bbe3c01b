"""Files that are either whole or absent after a crash: written aside, synced, renamed, folder
synced.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from janus_hpc.errors import JanusError, UsageError

# HDF5 tells errno amid its own words: as OSError while it writes, as RuntimeError when it closes.
_H5_REASON = re.compile(r"error message = '([^']*)'")


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_replaceable(path: Path, name: str) -> None:
    """UsageError, naming the option, where a file renamed to `path` would take the place of a folder or a
    device: root could replace /dev/null for everybody.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise UsageError(f"{name} {path} is {what}; name a file")


def refuse_input(path: Path, name: str, inputs: Sequence[Path]) -> None:
    """UsageError, naming the option, where writing `path` would take the place of one of the `inputs`."""
    for taken in (path, _aside(path)):
        if any(taken.exists() and its.exists() and taken.samefile(its) for its in inputs):
            what = "is" if taken == path else f"is written by way of {taken.name},"
            raise UsageError(f"{name} {path} {what} the file that is read; name another")


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def replace_synced(aside: Path, path: Path) -> None:
    """Syncs `aside`, renames it to `path` and syncs the folder. Raises OSError."""
    fd = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(aside, path)
    sync_folder(path.parent)


def write_file(path: Path, name: str, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill `path`, which is whole or untouched afterwards; unsynced, as for what can be
    made again. UsageError naming the option if it cannot be written.
    """
    check_replaceable(path, name)
    aside = _aside(path)
    try:
        with aside.open("wb") as out:
            write(out)
        os.replace(aside, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` as the whole content of `path`. Raises OSError."""
    aside = _aside(path)
    aside.write_bytes(data)
    replace_synced(aside, path)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Where to write a results file; after the block it is synced and renamed to `path`, and after an error gone.

    JanusError where it cannot be written, whichever way h5py says so.
    """
    aside = _aside(path)
    try:
        yield aside
        replace_synced(aside, path)
    except (OSError, RuntimeError) as error:
        found = _H5_REASON.search(str(error))
        if found is None and isinstance(error, RuntimeError):
            raise
        reason = found[1] if found is not None else getattr(error, "strerror", None) or str(error)
        raise JanusError(f"{path}: cannot write the results: {reason}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
