"""The manifest of a run folder: what decides the run's answers, and the starts so far.
 Resuming is allowed only if nothing that decides answers has changed. Rank counts and splits are no
part of that.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.durable import write_atomic

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_MAX_LAUNCH = 2**31
# The end of the year 9999.
_MAX_UNIX_S = 253402300799

FieldValue = str | int | float | bool | None
Fingerprint = dict[str, FieldValue]


class Launch(msgspec.Struct, frozen=True):
    """One start of the run: `number` counts from 0, `info` holds what the caller wants kept (split,
    hosts, ...).
    """

    number: int
    info: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of manifest.json."""

    format_version: int = FORMAT_VERSION
    fingerprint: Fingerprint
    launches: list[Launch] = []


def run_dir_for(out_path: Path) -> Path:
    """The folder of the run that writes `out_path`: prompts.h5 -> prompts.h5.run."""
    return out_path.with_name(f"{out_path.name}.run")


def fingerprint_bytes(fields: Fingerprint) -> bytes:
    """32 bytes that stand for `fields`, whatever their order."""
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).digest()


def load_manifest(run_dir: Path) -> Manifest | None:
    """The manifest in `run_dir`, None if there is none. Raises JournalError if it cannot be
    understood.
    """
    path = run_dir / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"{path}: cannot read the manifest: {error}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise JournalError(
            f"{path}: format version {manifest.format_version}; this program reads {FORMAT_VERSION}"
        )
    numbers = [its.number for its in manifest.launches]
    if numbers != sorted(set(numbers)) or not all(0 <= its <= _MAX_LAUNCH for its in numbers):
        raise JournalError(f"{path}: launches are numbered {numbers[:9]}, expected them ascending")
    return manifest


def began_at_unix_s(run_dir: Path, manifest: Manifest) -> int:
    """When the run's first launch started, as it was told. Raises JournalError if it was told no time."""
    told = manifest.launches[0].info.get("started_at_unix_s") if manifest.launches else None
    if type(told) is not int or not 0 <= told <= _MAX_UNIX_S:
        name = run_dir / MANIFEST_NAME
        raise JournalError(
            f"{name}: its first launch has started_at_unix_s {told!r}, expected a time"
        )
    return told


def save_manifest(run_dir: Path, manifest: Manifest) -> None:
    """Writes manifest.json atomically, making the folder if needed. Raises UsageError if that
    fails.
    """
    path = run_dir / MANIFEST_NAME
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}") from None


def check_resume(old: Fingerprint, new: Fingerprint) -> None:
    """Raises UsageError naming every field in which the run begun (`old`) and this one (`new`)
    differ.
    """
    differing = differences(old, new)
    if differing:
        lines = "\n".join(differing)
        raise UsageError(
            "the run begun here cannot be resumed, since it would give other answers;"
            f" restore what differs, name another output file, or discard it with --fresh:\n{lines}"
        )


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """A line for every field that is not the same in both."""
    absent = object()
    return [
        f"  {name}: was {_shown(old, name)}, now {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, absent) != new.get(name, absent)
    ]


def _shown(fields: Fingerprint, name: str) -> str:
    return repr(fields[name]) if name in fields else "absent"


def start_launch(
    run_dir: Path, fields: Fingerprint, info: dict[str, Any]
) -> tuple[Manifest, Launch]:
    """Adds a start to the run in `run_dir`, beginning the run if there is none. For one process.

    Raises UsageError if the run there cannot be resumed with `fields`.
    """
    old = load_manifest(run_dir)
    if old is not None:
        check_resume(old.fingerprint, fields)
    launches = [] if old is None else old.launches
    launch = Launch(1 + max((each.number for each in launches), default=-1), info)
    manifest = Manifest(fingerprint=fields, launches=[*launches, launch])
    save_manifest(run_dir, manifest)
    return manifest, launch
