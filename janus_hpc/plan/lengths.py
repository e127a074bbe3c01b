"""Lengths of the rows a plan is made for: read from the prompts file as a run would read it, or as given.

Knows rows and tokenizers; nothing of candidates.
"""

import tempfile
from pathlib import Path

import numpy as np

from janus_hpc.core import Row, SamplingParams
from janus_hpc.demo import demo_model_dir
from janus_hpc.errors import UsageError
from janus_hpc.models.registry import load_spec
from janus_hpc.models.spec import DTYPE_BYTES
from janus_hpc.plan.request import Request
from janus_hpc.planner.profile_data import ModelShape, shape_of
from janus_hpc.planner.workload import Lengths
from janus_hpc.rows.index import build_index
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.prompt import prompt_ids
from janus_hpc.sampling.tokenizer import TextCodec

MOST_READ = 2000
BYTES_PER_TOKEN = 4


def row_lengths(request: Request, model: ModelShape) -> Lengths:
    """UsageError for a file that cannot be read, or in which no row can be run."""
    if request.prompts is not None:
        return _of_file(request.prompts, request, model)
    assert request.rows and request.mean_prompt and request.mean_answer, f"{request=}"
    return Lengths(
        prompts=[request.mean_prompt],
        answers=[request.mean_answer],
        num_sequences=request.rows,
        how=f"{request.rows} rows as given",
    )


def _of_file(path: Path, request: Request, model: ModelShape) -> Lengths:
    folder = request.model or demo_if_planned(model)
    codec = None if folder is None else TextCodec.load(folder)
    defaults = SamplingParams(max_tokens=request.max_tokens)
    prompts: list[float] = []
    answers: list[float] = []
    refused, first_reason = 0, ""
    with tempfile.TemporaryDirectory() as aside:
        index = build_index(path, Path(aside) / "index.bin")
        which = _evenly(index.num_rows)
        with RowReader(path, index, defaults) as reader:
            for row in (reader.read(at) for at in which):
                try:
                    prompt, answer = _row(row, codec, folder, request)
                except RowRejected as error:
                    refused, first_reason = refused + 1, first_reason or f"line {row.line}: {error}"
                    continue
                prompts += [prompt] * row.params.n
                answers += [answer] * row.params.n
    if not prompts:
        raise UsageError(f"{path}: no row of it can be run: {first_reason or 'it has none'}")
    return Lengths(
        prompts=prompts,
        answers=answers,
        num_sequences=round(len(prompts) * index.num_rows / len(which)),
        how=_how(path, index.num_rows, len(which), refused, codec is not None, request),
    )


def demo_if_planned(model: ModelShape) -> Path | None:
    """The demo's folder where the profile is of the demo, which a run without --model takes."""
    spec = load_spec(demo_model_dir())
    shape = shape_of(spec, model.dtype, DTYPE_BYTES.get(model.dtype, 0), model.name)
    return demo_model_dir() if shape == model else None


def _row(
    row: Row, codec: TextCodec | None, folder: Path | None, request: Request
) -> tuple[float, float]:
    """Tokens of the prompt, and of the answer at most. RowRejected: the row will not run."""
    if row.error is not None:
        raise RowRejected(row.error.field, row.error.reason)
    longest = None
    if folder is not None and (codec is not None or row.token_ids is not None):
        spec = load_spec(folder)
        prompt = float(len(prompt_ids(row, codec, spec.vocab, spec.max_context)))
        longest = spec.max_context - prompt
    else:
        prompt = float(max(_num_bytes(row) / BYTES_PER_TOKEN, 1.0))
    answer = float(request.mean_answer or row.params.max_tokens)
    return prompt, answer if longest is None else min(answer, longest)


def _num_bytes(row: Row) -> float:
    if row.token_ids is not None:
        return float(BYTES_PER_TOKEN * len(row.token_ids))
    if row.text is not None:
        return float(len(row.text.encode()))
    assert row.messages is not None, row
    return float(sum(len(str(its.get("content") or "").encode()) for its in row.messages))


def _evenly(num_rows: int) -> list[int]:
    """All rows, or MOST_READ of them spread over the file."""
    if num_rows <= MOST_READ:
        return list(range(num_rows))
    spread: list[int] = np.linspace(0, num_rows - 1, MOST_READ).astype(np.int64).tolist()
    return spread


def _how(
    path: Path, num_rows: int, num_read: int, refused: int, has_codec: bool, request: Request
) -> str:
    parts = [f"{num_rows} rows of {path}"]
    if num_read < num_rows:
        parts.append(f"{num_read} of them read, evenly spread")
    if refused:
        parts.append(f"{refused} of these refused and left out")
    if not has_codec:
        parts.append(f"without a tokenizer: {BYTES_PER_TOKEN} bytes counted as a token")
    length = "--mean-answer" if request.mean_answer else "max_tokens allows"
    return ", ".join([*parts, f"answers as long as {length}"])
