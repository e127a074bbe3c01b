"""Check `versions`: Python, the package and what it needs, within range and alike on all ranks."""

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from pathlib import Path

import janus_hpc
from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, some, warning

PACKAGE = "janus-hpc"
# Optional: used where present, and then the same everywhere.
_EXTRAS = ("ucxx-cu12", "ucxx-cu13", "cupy-cuda12x", "cupy-cuda13x", "triton")
_SHOWN = ("torch", "mpi4py", "h5py")


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """`versions`: package -> version, "" where it is absent; `code`: a hash of this package's files.

    `required`: package -> its range, as in setup.cfg; `folder`: where this package lies.
    """

    python: str
    versions: dict[str, str]
    required: dict[str, str]
    code: str
    folder: str


def gather(context: Context) -> VersionFacts:
    """Reads metadata; imports nothing heavy."""
    required = requirements(metadata.requires(PACKAGE) or [])
    folder = Path(janus_hpc.__file__).parent
    return VersionFacts(
        python=platform.python_version(),
        versions={name: _version(name) for name in (*required, *_EXTRAS)},
        required=required,
        code=_hash_of(folder),
        folder=str(folder),
    )


def requirements(lines: Sequence[str]) -> dict[str, str]:
    """Package -> range of the requirements that hold without an extra."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*([<>=!~0-9.,\sA-Za-z]*)", line)
        if match:
            found[match[1]] = match[2].strip()
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def in_range(version: str, wanted: str) -> bool:
    """Whether `2.13.0+cpu` fits `>=2.11,<2.14`; an operator it does not know fits."""
    compare = {"<": (-1,), "<=": (-1, 0), ">=": (0, 1), ">": (1,), "==": (0,)}
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(<=|>=|==|<|>)\s*([0-9.]+)\s*", part)
        if match and _order(version, match[2]) not in compare[match[1]]:
            return False
    return True


def _order(a: str, b: str) -> int:
    """-1, 0 or 1, by the numbers at the start of both; missing ones count as 0."""
    numbers = [
        [int(its) for its in re.findall(r"\d+", re.split(r"[^0-9.]", text, maxsplit=1)[0])]
        for text in (a, b)
    ]
    for left, right in zip_longest(*numbers, fillvalue=0):
        if left != right:
            return -1 if left < right else 1
    return 0


def judge(facts: Sequence[VersionFacts], context: Context) -> list[Finding]:
    """Pure."""
    findings = [*_absent(facts), *_out_of_range(facts), *_different(facts)]
    shown = ", ".join(f"{name} {facts[0].versions.get(name, '?')}" for name in _SHOWN)
    alike = ", on all ranks alike" if len(facts) > 1 else ""
    return findings or [fine(f"Python {facts[0].python}, {shown}{alike}")]


def _absent(facts: Sequence[VersionFacts]) -> list[Finding]:
    findings = []
    for name in facts[0].required:
        without = [r for r, its in enumerate(facts) if not its.versions.get(name)]
        if without:
            findings.append(
                error(
                    f"package {name} is not installed",
                    why="a run needs it",
                    fix=f"pip install '{name}{facts[0].required[name]}', or `pip install janus-hpc` again",
                    ranks=without,
                )
            )
    return findings


def _out_of_range(facts: Sequence[VersionFacts]) -> list[Finding]:
    findings = []
    for name, wanted in facts[0].required.items():
        wrong = [
            r
            for r, its in enumerate(facts)
            if its.versions.get(name) and not in_range(its.versions[name], wanted)
        ]
        if wrong:
            findings.append(
                warning(
                    f"{name} {facts[wrong[0]].versions[name]} is outside of the range {wanted}",
                    why="it was not tested with this package",
                    fix=f"pip install '{name}{wanted}'",
                    ranks=wrong,
                )
            )
    return findings


def _different(facts: Sequence[VersionFacts]) -> list[Finding]:
    columns = {"Python": [its.python for its in facts]}
    columns |= {
        name: [its.versions.get(name, "") or "none" for its in facts] for name in facts[0].versions
    }
    columns["code of janus_hpc"] = [f"{its.code} in {its.folder}" for its in facts]
    codes = {its.code for its in facts}
    if len(codes) == 1:
        del columns["code of janus_hpc"]
    findings = []
    for name, values in columns.items():
        kinds = sorted(set(values))
        if len(kinds) > 1:
            usual = max(kinds, key=values.count)
            findings.append(
                error(
                    f"{name} differs between ranks: {some(kinds)}",
                    why="ranks talk to each other in formats that change between versions, and "
                    "results would depend on the host",
                    fix="use one environment on all hosts: one on a shared file system, or one image",
                    ranks=[r for r, value in enumerate(values) if value != usual],
                )
            )
    return findings


CHECK = Check(name="versions", gather=gather, judge=judge)
