"""What a kind of file is to the campaign: how it is made, how a case changes it, and how it is read.

The kinds themselves are in `model_files`, `plan_files`, `run_files` and `result_files`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from janus_hpc.errors import JanusError
from tests.fuzz.oracle import Finding

# Changes files in the case's folder; the paths it changed.
Mutate = Callable[[Random, Path], Sequence[Path]]
# Reads the case's folder as the package does. `JanusError`: refused.
Read = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`originals`: a folder with valid files, linked into each case's folder; `must_name`: a refusal names one of
    the changed files, or another one of the folder that does not fit it.
    """

    name: str
    originals: Path
    mutate: Mutate
    read: Read
    must_name: bool = True
    limit_s: float = 20.0


def run_case(kind: Kind, rng: Random, folder: Path) -> str:
    """One case: accepted or refused; anything else is raised."""
    for path in sorted(kind.originals.iterdir()):
        os.link(path, folder / path.name)
    changed = kind.mutate(rng, folder)
    try:
        kind.read(folder)
    except JanusError as error:
        if kind.must_name and not any(
            text in str(error) for text in (str(folder), *(path.name for path in changed))
        ):
            raise Finding(f"refusal names none of {[p.name for p in changed]}: {error}") from error
        return "refused"
    return "accepted"


def rewrite(path: Path, data: bytes) -> Path:
    """Puts new content at `path` without touching the original it is linked to."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
