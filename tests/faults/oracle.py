"""Whether a finished run is the undisturbed one: exported bytes, ids by plain h5py, `results verify`."""

import io
import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py

from janus_hpc.results.export import export as export_results
from janus_hpc.results.verify import verify


@dataclass(frozen=True)
class Verdict:
    """Rows lost, doubled and differing, and whatever else is wrong in words."""

    lost: int
    doubled: int
    differing: int
    findings: tuple[str, ...]


def export(path: Path) -> str:
    """What `janus-hpc results export --to jsonl --no-timing` prints."""
    out = io.BytesIO()
    export_results(path, "jsonl", out, False)
    return out.getvalue().decode()


def judge(path: Path, expected: str) -> Verdict:
    """Compare a results file with the export of the undisturbed run."""
    findings = [f"results verify: {its}" for its in verify(path).findings]
    wanted = [_id_of(line) for line in expected.splitlines()]
    with h5py.File(path) as file:
        ids = _ids(file)
        for name in ("num_duplicates", "num_unequal_duplicates"):
            if file.attrs[name]:
                findings.append(f"{name} is {file.attrs[name]}")
    found = Counter(ids)
    text = export(path)
    pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
    differing = sum(one != other for one, other in pairs)
    if text != expected and not differing:
        findings.append("the export has other lines")
    return Verdict(
        lost=sum(found[its] == 0 for its in wanted),
        doubled=sum(count - 1 for count in found.values()),
        differing=differing,
        findings=tuple(findings),
    )


def _ids(file: h5py.File) -> list[str]:
    """The rows' ids, read as docs/results.md tells a reader without this package."""
    values = file["rows/id_values"][()].tobytes()
    offsets = file["rows/id_offsets"][()]
    return [values[a:b].decode() for a, b in pairwise(offsets)]


def _id_of(line: str) -> str:
    found: str = json.loads(line)["id"]
    return found
