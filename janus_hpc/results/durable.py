"""Files that are either whole or absent after a crash: written aside, synced, renamed, folder
synced.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from janus_hpc.errors import UsageError


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
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with aside.open("wb") as out:
            write(out)
        os.replace(aside, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` as the whole content of `path`. Raises OSError."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_bytes(data)
    replace_synced(aside, path)
