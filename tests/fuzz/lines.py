"""Fuzzed lines inside one process: index, reader, intake, sampler, tracker, journal, merge, export.

Takes the real tokenizer of the demo model and random logits in place of the model.
"""

import io
import json
from pathlib import Path

import torch

from janus_hpc.core import FinishReason, RowError, RowResult, SamplingParams
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.active import ActiveRow, ActiveSample
from janus_hpc.results.export import export
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.verify import verify
from janus_hpc.rows.index import build_index
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.prompt import prompt_ids
from janus_hpc.sampling.sampler import NO_TOKEN, choose
from janus_hpc.sampling.tokenizer import TextCodec
from tests.fuzz.oracle import Expected, Finding, check_row, expect
from tests.fuzz.rows import VOCAB, Lines

CONTEXT = 512
NUM_STEPS = 4
MOST_SAMPLES = 4
_PER_STEP = 256


def check_lines(made: Lines, folder: Path) -> dict[str, int]:
    """Runs all of a file and compares with what must come out; how many rows ran and failed. Raises Finding."""
    path = folder / "rows.jsonl"
    path.write_bytes(made.data)
    expected = expect(made)
    index = build_index(path, folder / "index.bin")
    if index.num_rows != len(expected.lines):
        raise Finding(f"{len(expected.lines)} lines, but {index.num_rows} rows")
    codec = TextCodec.load(demo_model_dir())
    assert codec is not None
    journal = JournalWriter(folder, 0, 0, bytes(32))
    num_failed = 0
    with RowReader(path, index, SamplingParams(max_tokens=NUM_STEPS)) as reader:
        for start in range(0, index.num_rows, _PER_STEP):
            numbers = range(start, min(start + _PER_STEP, index.num_rows))
            active, refused = _admit(reader, codec, numbers)
            _check_prompts(expected, active)
            results = [*refused, *_answer(active)]
            for result in sorted(results, key=lambda its: its.index):
                error = result.error
                told = None
                if error is not None:
                    told = {"line": error.line, "field": error.field, "reason": error.reason}
                check_row(expected, result.index, result.id, told)
            num_failed += sum(its.error is not None for its in results)
            journal.append_group(results)
    journal.close()
    _check_output(folder, index.num_rows, expected)
    return {"rows": index.num_rows, "failed": num_failed}


def _admit(
    reader: RowReader, codec: TextCodec, numbers: range
) -> tuple[list[ActiveRow], list[RowResult]]:
    """As the engine admits rows: those that can run, and the error rows of the others."""
    active: list[ActiveRow] = []
    refused: list[RowResult] = []
    for number in numbers:
        row, error = reader.read(number), None
        try:
            if row.error is None:
                ids = prompt_ids(row, codec, VOCAB, CONTEXT)
                active.append(ActiveRow(row, ids, codec, codec.eos_token_ids, VOCAB, CONTEXT, 0))
                continue
            error = row.error
        except RowRejected as fault:
            error = RowError(line=row.line, field=fault.field, reason=fault.reason)
        refused.append(
            RowResult(index=number, id=row.id, prompt_token_ids=[], samples=[], error=error)
        )
    return active, refused


def _check_prompts(expected: Expected, active: list[ActiveRow]) -> None:
    """A valid row's prompt is the one on its line."""
    for its in active:
        wanted = expected.must_run.get(its.row.index)
        if wanted is None:
            continue
        text = wanted["prompt"] if isinstance(wanted["prompt"], str) else None
        if its.row.text != text or (its.row.messages is None) != (wanted["messages"] is None):
            raise Finding(f"line {its.row.line}: another prompt than on the line: {its.row}")


def _answer(active: list[ActiveRow]) -> list[RowResult]:
    """Some steps of the sampler on random logits; rows with many samples get some of them."""
    generator = torch.Generator().manual_seed(len(active))
    samples: list[ActiveSample] = []
    for row in active:
        del row.samples[MOST_SAMPLES:]
        samples += row.samples
    for _ in range(NUM_STEPS):
        going = [its for its in samples if its.finish_reason is None]
        logits = 5 * torch.randn(len(going), VOCAB, generator=generator)
        for its, choice in zip(going, choose(logits, [s.state for s in going]), strict=True):
            if choice.token_id == NO_TOKEN:
                raise Finding(
                    f"line {its.row.row.line}: no token from finite logits: {its.row.row}"
                )
            its.finish_reason = its.tracker.push(choice.token_id)
            if choice.logprobs is not None:
                its.logprobs.append(choice.logprobs)
            its.token_times_s.append(0.1)
    for its in samples:
        its.finish_reason = its.finish_reason or its.tracker.finish_reason
    return [_result(row) for row in active]


def _result(row: ActiveRow) -> RowResult:
    for sample in row.samples:
        if sample.finish_reason is None:
            sample.finish_reason = FinishReason.LENGTH
    return row.result()


def _check_output(folder: Path, num_rows: int, expected: Expected) -> None:
    out = folder / "rows.h5"
    merge(folder, out, num_rows, bytes(32), {"model": "demo"})
    findings = verify(out).findings
    if findings:
        raise Finding(f"verify: {findings[0]}")
    for to in ("jsonl", "openai"):
        data = io.BytesIO()
        export(out, to, data)
        lines = data.getvalue().split(b"\n")[:-1]
        if len(lines) != num_rows:
            raise Finding(f"{num_rows} rows, but {len(lines)} lines of {to}")
        for line in lines:
            json.loads(line)
    export(out, "parquet", io.BytesIO())
