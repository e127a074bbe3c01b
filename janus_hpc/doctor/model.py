"""Check `model`: whether the model folder is whole, of a known family, and the same on all nodes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, size, some, warning
from janus_hpc.doctor.model_files import (
    BrokenFile,
    Header,
    check_is_real,
    read_header,
    weight_files,
)
from janus_hpc.errors import ModelError

if TYPE_CHECKING:
    from janus_hpc.models.spec import ModelSpec

_AGAIN = (
    "download it again (huggingface-cli download, or git lfs pull in a clone), and compare sizes"
)
_WHY = "ranks would end while they read the weights, minutes into the job"
_SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Of one node. `digest`: names, sizes and headers of the folder's files; "" where it cannot be read.

    `findings` and `summary` are rank 0's, who looks at everything.
    """

    digest: str
    findings: tuple[Finding, ...] = ()
    summary: str = ""


def gather(context: Context) -> ModelFacts | None:
    """None on ranks that are not their node's first."""
    if not context.is_first_on_node:
        return None
    folder = context.target.model_dir
    digest = _digest(folder)
    if context.world_rank != 0:
        return ModelFacts(digest=digest)
    findings, summary = examine(folder, context.target.dtype)
    return ModelFacts(digest=digest, findings=tuple(findings), summary=summary)


def _digest(folder: Path) -> str:
    """Tells copies of a folder apart without reading it all."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".jinja"):
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
                with path.open("rb") as file:
                    digest.update(file.read(1 << 20))
    except OSError:
        return ""
    return digest.hexdigest()


def judge(facts: Sequence[ModelFacts | None], context: Context) -> list[Finding]:
    """Pure."""
    found = {r: its for r, its in enumerate(facts) if its is not None}
    first, folder = found[0], context.target.model_dir
    findings = list(first.findings)
    absent = [r for r, its in found.items() if not its.digest]
    if absent and first.digest:
        findings.append(
            error(
                f"{folder} cannot be read on {len(absent)} of {len(found)} nodes",
                why=_WHY,
                fix="put the model on a file system that all hosts mount, or copy it to each of them",
                ranks=absent,
            )
        )
    other = [r for r, its in found.items() if its.digest not in ("", first.digest)]
    if other and first.digest:
        findings.append(
            error(
                f"{folder} is another folder on {len(other)} of {len(found)} nodes: names, sizes or headers "
                "differ",
                why="ranks would compute with different weights",
                fix="copy the folder again to these hosts, or name one on a shared file system",
                ranks=other,
            )
        )
    return findings or [fine(first.summary)]


def examine(folder: Path, dtype: str = "auto") -> tuple[list[Finding], str]:
    """Everything about one folder: findings, and a line for a folder without any."""
    from janus_hpc.models.registry import load_spec

    if broken := _small_files(folder):
        return broken, ""
    try:
        spec = load_spec(folder)
    except ModelError as problem:
        return [
            _bad(str(problem), "take a model of a family that is known, or download it again")
        ], ""
    headers, findings = _headers(folder)
    if not findings:
        findings = _tensors(folder, spec)
    findings += _dtype(folder, spec, dtype) + _tokenizer(folder, spec)
    num_bytes = sum(header.num_bytes for header in headers.values())
    num_tensors = sum(len(header.tensors) for header in headers.values())
    summary = f"{folder}: {spec.architecture}, {num_tensors} tensors in {len(headers)} files, {size(num_bytes)}"
    return findings, summary


def _bad(what: str, fix: str = _AGAIN) -> Finding:
    return error(what, why=_WHY, fix=fix)


def _small_files(folder: Path) -> list[Finding]:
    """JSON files that are there, but are no files."""
    findings = []
    for name in _SMALL_FILES:
        try:
            if (folder / name).exists():
                check_is_real(folder / name)
        except BrokenFile as problem:
            findings.append(_bad(str(problem)))
    return findings


def _headers(folder: Path) -> tuple[dict[str, Header], list[Finding]]:
    from janus_hpc.weights.checkpoint import INDEX_NAME, SINGLE_NAME

    try:
        files = weight_files(folder, INDEX_NAME, SINGLE_NAME)
    except BrokenFile as problem:
        return {}, [_bad(str(problem))]
    headers, problems = {}, []
    for name, listed in files.items():
        try:
            headers[name] = read_header(folder / name)
        except BrokenFile as problem:
            problems.append(str(problem))
            continue
        lost = [its for its in listed if its not in headers[name].tensors]
        if lost:
            problems.append(
                f"{folder / name} lacks tensors that {INDEX_NAME} says are in it: {some(lost, 3)}"
            )
    more = f" (and {len(problems) - 3} more files)" if len(problems) > 3 else ""
    return headers, [_bad("; ".join(problems[:3]) + more)] if problems else []


def _tensors(folder: Path, spec: "ModelSpec") -> list[Finding]:
    """What the family needs is there, in the right shapes and in floating point."""
    from janus_hpc.models.registry import ignored_tensors
    from janus_hpc.weights.checkpoint import Checkpoint

    try:
        with Checkpoint(folder) as checkpoint:
            checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
    except ModelError as problem:
        fix = "config.json and the weights are not of one model: download both again"
        if " is stored as " in str(problem):
            fix = "take the model without quantisation, or in FP8 blocks"
        return [_bad(str(problem), fix)]
    return []


def _dtype(folder: Path, spec: "ModelSpec", asked: str) -> list[Finding]:
    from janus_hpc.models.spec import DTYPE_BYTES

    dtype = spec.stored_dtype if asked == "auto" else asked
    if dtype in DTYPE_BYTES:
        return []
    known = ", ".join(DTYPE_BYTES)
    return [
        _bad(f"{folder / 'config.json'}: dtype {dtype!r} is not one of {known}", "give --dtype")
    ]


def _tokenizer(folder: Path, spec: "ModelSpec") -> list[Finding]:
    from janus_hpc.sampling.tokenizer import TextCodec

    try:
        codec = TextCodec.load(folder)
    except ModelError as problem:
        return [_bad(str(problem))]
    if codec is None:
        return [
            warning(
                f"{folder} has no tokenizer.json",
                why="only rows of token ids can be answered: a prompt of text becomes an error row",
                fix="copy tokenizer.json and tokenizer_config.json of the model into the folder",
            )
        ]
    if codec.vocab_size > spec.vocab:
        return [
            _bad(
                f"{folder}: the tokenizer has ids up to {codec.vocab_size - 1}, the model {spec.vocab} embeddings",
                "the tokenizer is of another model: download it again",
            )
        ]
    return []


CHECK = Check(name="model", gather=gather, judge=judge)
