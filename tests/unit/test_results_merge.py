"""Journals merge into one file: each row once, in input order, as plain h5py reads it."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from janus_hpc.core import FinishReason, RowError, RowResult, SampleResult, TokenLogprobs
from janus_hpc.errors import JanusError, JournalError
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import MergeReport, merge
from janus_hpc.results.reader import ResultsFile
from janus_hpc.results.stats import RunStats
from janus_hpc.results.verify import verify
from janus_hpc.routing.trace_file import read_trace
from tests.unit.sample_stats import STATS

FINGERPRINT = bytes(32)
TEXTS = ["", "plain", "nul \0 inside", "emoji \U0001f600\u00e9", "line\nend"]
PLACEMENT_TEXTS = ("kind", "why", "digest")


def f32(value: float) -> float:
    return float(np.float32(value))


def make_result(index: int, rng: random.Random) -> RowResult:
    name = f"id-\u00fc{index}"
    if index % 5 == 4:
        error = RowError(line=index + 1, field="prompt", reason="empty \u00e9")
        return RowResult(index=index, id=name, prompt_token_ids=[], samples=[], error=error)
    samples = [make_sample(rng) for _ in range(1 + index % 3)]
    prompt = [rng.randrange(2**31) for _ in range(index % 4)]
    return RowResult(index=index, id=name, prompt_token_ids=prompt, samples=samples)


def make_sample(rng: random.Random) -> SampleResult:
    count = rng.randrange(4)
    logprobs = None
    if rng.random() < 0.5:
        logprobs = [
            TokenLogprobs(
                chosen=f32(-rng.random()),
                top_ids=list(range(at)),
                top_logprobs=[f32(-rng.random()) for _ in range(at)],
            )
            for at in range(count)
        ]
    return SampleResult(
        token_ids=[rng.randrange(1000) for _ in range(count)],
        text=rng.choice(TEXTS),
        finish_reason=rng.choice([FinishReason.STOP, FinishReason.LENGTH]),
        stop_reason=rng.choice([None, 5, "stop\0"]),
        logprobs=logprobs,
        token_times_s=[f32(at + rng.random()) for at in range(count)],
    )


def make_results(count: int) -> list[RowResult]:
    rng = random.Random(count)
    return [make_result(index, rng) for index in range(count)]


def journal(folder: Path, launch: int, world_rank: int, results: list[RowResult]) -> None:
    writer = JournalWriter(folder, launch, world_rank, FINGERPRINT)
    writer.append_group(results)
    writer.close()


def spread(folder: Path, results: list[RowResult]) -> None:
    """Rows in random order over two starts of two ranks."""
    shuffled = random.Random(3).sample(results, len(results))
    for part in range(4):
        journal(folder, part // 2, part % 2, shuffled[part::4])


def run_merge(folder: Path, num_rows: int, **more: Any) -> tuple[Path, MergeReport]:
    out = folder / "out.h5"
    attrs = {"model": "m", "created": 5, "nested": {"a": [1, None]}, "x": 0.5, "nothing": None}
    return out, merge(folder, out, num_rows, FINGERPRINT, attrs, **more)


def ragged(file: h5py.File, name: str, item: int) -> np.ndarray[Any, Any]:
    start, stop = file[f"{name}_offsets"][item : item + 2]
    values: np.ndarray[Any, Any] = file[f"{name}_values"][start:stop]
    return values


def test_plain_h5py_reads_every_column(tmp_path: Path) -> None:
    results = make_results(23)
    spread(tmp_path, results)
    chat = np.arange(23) % 2 == 0
    out, report = run_merge(tmp_path, 23, stats=STATS, chat=chat)
    num_samples = sum(len(result.samples) for result in results)
    assert report == MergeReport(
        num_rows=23,
        num_failed=4,
        num_samples=num_samples,
        num_duplicates=0,
        num_unequal=0,
    )
    with h5py.File(out) as file:
        assert file.attrs["schema_version"] == 4
        assert (file.attrs["model"], file.attrs["x"], file.attrs["num_rows"]) == ("m", 0.5, 23)
        assert json.loads(file.attrs["nested"]) == {"a": [1, None]}
        assert file["rows/index"][:].tolist() == list(range(23))
        assert file["rows/line"][:].tolist() == list(range(1, 24))
        assert file["rows/chat"][:].tolist() == chat.tolist()
        for result in results:
            check_row(file, result)
        assert file["batches/tpot_s"][:].tolist() == [0.125, 0.25]
        assert np.isnan(file["batches/tpot_predicted_s"][0])
        check_batches(file)
        check_placements(file)
        check_routing(file)
        assert ragged(file, "batches/split", 0).tobytes() == b"1a3e"
        assert file["layers/expert_activations"][:].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file["layers/activated_mean"][:].tolist() == [2.25, 2.75]
        assert file["layers"].attrs["num_steps"] == 7
        assert file["launches/num_rows"][:].tolist() == [12, 11]
        assert json.loads(ragged(file, "launches/info", 1).tobytes()) == {"split": "2a2e"}
    assert not list(tmp_path.glob("*.tmp"))


def check_batches(file: h5py.File) -> None:
    for name, second in {
        "epoch": 1,
        "slots_moved": 3,
        "move_s": 0.75,
        "num_passes": 11,
        "began_s": 3.5,
        "moved_bytes": 4096,
        "num_decode_steps": 5,
        "microbatches": 2,
    }.items():
        assert file[f"batches/{name}"][:].tolist() == [0, second], name
    known_later = {
        "a_max_mean": 1.25,
        "experts_s": 0.5,
        "decode_tpot_s": 0.25,
        "attention_s": 0.125,
    }
    known_later |= {"moe_s": 0.0625, "comm_s": 0.0625, "mean_batch": 7.5, "mean_context": 30.25}
    known_later |= {"attention_predicted_s": 0.5, "moe_predicted_s": 1.5, "comm_predicted_s": 2.5}
    known_later |= {"move_predicted_s": 3.5, "gain_predicted_s": 4.5}
    for name, second in known_later.items():
        assert np.isnan(file[f"batches/{name}"][0]) and file[f"batches/{name}"][1] == second
    assert ragged(file, "batches/placement", 0).tobytes() == b""
    assert ragged(file, "batches/roles", 1).tobytes() == b"aee"
    assert ragged(file, "batches/decision", 1).tobytes().decode() == "re-split: \u00e9"
    assert ragged(file, "batches/placement", 1).tobytes().decode() == "even: no trace \u00e9"


def check_placements(file: h5py.File) -> None:
    """The first has one rank less and one slot more; both are filled up with empty slots."""
    assert file["placements/epoch"][:].tolist() == [0, 1]
    assert file["placements/slots"].dtype == np.dtype("<i4")
    none = [-1, -1, -1]
    assert file["placements/slots"][0].tolist() == [[[0, 1, 2], none], [[2, 1, 0], none]]
    assert file["placements/slots"][1].tolist() == [
        [[0, 1, -1], [2, -1, -1]],
        [[2, 0, -1], [1, 0, -1]],
    ]
    texts = {
        name: ragged(file, f"placements/{name}", 1).tobytes().decode() for name in PLACEMENT_TEXTS
    }
    assert texts == {"kind": "balanced", "why": "\u00e9", "digest": ""}


def check_routing(file: h5py.File) -> None:
    routing = file["routing"]
    assert (routing.attrs["num_experts"], routing.attrs["top_k"]) == (3, 1)
    assert routing["layer_ids"][:].tolist() == [0, 2]
    assert routing["num_tokens"][:].tolist() == [3, 1]
    assert routing["counts"][:].tolist() == [[2, 0, 1], [0, 1, 0]]
    assert routing["coactivation"].shape == (2, 3, 3)
    assert routing["num_routes"][:].tolist() == [2, 1]
    assert routing["routes"][:].tolist() == [[[2], [0]], [[1], [-1]]]


def test_a_run_that_measured_nothing(tmp_path: Path) -> None:
    spread(tmp_path, make_results(3))
    out, _ = run_merge(tmp_path, 3)
    assert verify(out).findings == []
    with h5py.File(out) as file:
        assert file["placements/slots"].shape == (0, 0, 0, 0)
        assert file["routing/coactivation"].shape == (0, 0, 0)
        assert file["layers/activated_mean"].shape == (0,)
    layers = STATS.layers
    assert layers is not None
    stats = RunStats(layers=replace(layers, activated_mean=None))
    out, _ = run_merge(tmp_path, 3, stats=stats)
    with h5py.File(out) as file:
        assert np.isnan(file["layers/activated_mean"][:]).tolist() == [True, True]


def check_row(file: h5py.File, result: RowResult) -> None:
    row = result.index
    error = result.error
    assert ragged(file, "rows/id", row).tobytes().decode() == result.id
    assert ragged(file, "rows/prompt_token_ids", row).tolist() == result.prompt_token_ids
    assert file["rows/status"][row] == (error is not None)
    if error is not None:
        assert file["rows/error_line"][row] == error.line
        assert ragged(file, "rows/error_reason", row).tobytes().decode() == error.reason
    start, stop = file["rows/sample_offsets"][row : row + 2]
    assert stop - start == len(result.samples)
    for at, sample in zip(range(start, stop), result.samples, strict=True):
        check_sample(file, at, sample, row)


def check_sample(file: h5py.File, at: int, sample: SampleResult, row: int) -> None:
    names = file["samples"].attrs["finish_reason_names"]
    assert file["samples/row"][at] == row
    assert names[file["samples/finish_reason"][at]].decode() == sample.finish_reason
    assert ragged(file, "samples/text", at).tobytes().decode() == sample.text
    assert ragged(file, "samples/token_ids", at).tolist() == sample.token_ids
    assert ragged(file, "samples/token_times_s", at).tolist() == sample.token_times_s
    reason = ragged(file, "samples/stop_reason", at).tobytes()
    assert (json.loads(reason) if reason else None) == sample.stop_reason
    times = sample.token_times_s
    if len(times) > 1:
        mean = np.float32((times[-1] - times[0]) / (len(times) - 1))
        assert (file["samples/ttft_s"][at], file["samples/tpot_s"][at]) == (times[0], mean)
    assert file["samples/logprobs_present"][at] == (sample.logprobs is not None)
    first = int(file["samples/logprobs_offsets"][at])
    for position, logprobs in enumerate(sample.logprobs or (), start=first):
        assert file["samples/logprobs_values"][position] == logprobs.chosen
        start, stop = file["samples/top_logprobs_offsets"][position : position + 2]
        assert file["samples/top_token_ids_values"][start:stop].tolist() == logprobs.top_ids
        assert file["samples/top_logprobs_values"][start:stop].tolist() == logprobs.top_logprobs


def test_reader_gives_back_what_was_journaled(tmp_path: Path) -> None:
    results = make_results(40)
    spread(tmp_path, results)
    out, _ = run_merge(tmp_path, 40, stats=STATS)
    with ResultsFile(out) as file:
        assert list(file) == results
        assert list(file.rows(7, 9)) == results[7:9]
        assert (file.num_rows, file.attrs["model"]) == (40, "m")
    assert verify(out).findings == []
    trace = read_trace(out)
    assert trace.layer_ids == (0, 2)
    assert trace.routes_NK(0).tolist() == [[2], [0]]


def test_columns_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus_hpc.results.columns.CHUNK_BYTES", 64)
    monkeypatch.setattr("janus_hpc.results.reader._ROWS_PER_BLOCK", 7)
    monkeypatch.setattr("janus_hpc.results.structure._BLOCK_ITEMS", 9)
    results = make_results(60)
    spread(tmp_path, results)
    out, _ = run_merge(tmp_path, 60)
    with ResultsFile(out) as file:
        assert list(file) == results
    with h5py.File(out) as plain:
        assert plain["samples/token_ids_values"].chunks == (16,)
        assert plain["samples/token_ids_values"].fletcher32
    assert verify(out).findings == []


@pytest.mark.parametrize("count", [0, 5])
def test_no_rows_and_only_error_rows(tmp_path: Path, count: int) -> None:
    results = [
        RowResult(
            index=index,
            id=f"{index}",
            prompt_token_ids=[],
            samples=[],
            error=RowError(line=index + 1, field="", reason="broken"),
        )
        for index in range(count)
    ]
    if count:
        spread(tmp_path, results)
    out, report = run_merge(tmp_path, count)
    assert (report.num_rows, report.num_failed, report.num_samples) == (count, count, 0)
    with ResultsFile(out) as file:
        assert list(file) == results


def test_same_journals_give_the_same_bytes(tmp_path: Path) -> None:
    spread(tmp_path, make_results(12))
    first = run_merge(tmp_path, 12, stats=STATS)[0].read_bytes()
    assert run_merge(tmp_path, 12, stats=STATS)[0].read_bytes() == first


def test_duplicates_keep_the_first_success(tmp_path: Path) -> None:
    first, second, third = make_results(3)
    other = RowResult(index=1, id=second.id, prompt_token_ids=[9], samples=second.samples)
    later_times = RowResult(index=0, id=first.id, prompt_token_ids=[], samples=first.samples)
    error = RowError(line=3, field="", reason="first failure")
    failed = RowResult(index=2, id=third.id, prompt_token_ids=[], samples=[], error=error)
    journal(tmp_path, 0, 1, [first, failed])
    journal(tmp_path, 0, 0, [second])
    journal(tmp_path, 1, 0, [other, later_times, third, failed])
    out, report = run_merge(tmp_path, 3)
    assert (report.num_duplicates, report.num_unequal) == (2, 1)
    with ResultsFile(out) as file:
        assert list(file) == [first, second, third]
        assert file.attrs["num_unequal_duplicates"] == 1
    with h5py.File(out) as plain:
        assert plain["rows/launch"][:].tolist() == [0, 0, 1]
        assert plain["rows/world_rank"][:].tolist() == [1, 0, 0]


def test_the_last_failure_stands(tmp_path: Path) -> None:
    for launch, reason in enumerate(["first", "second"]):
        error = RowError(line=1, field="", reason=reason)
        failed = RowResult(index=0, id="a", prompt_token_ids=[], samples=[], error=error)
        journal(tmp_path, launch, 0, [failed])
    out, _ = run_merge(tmp_path, 1)
    with ResultsFile(out) as file:
        assert [row.error.reason for row in file if row.error] == ["second"]


def test_more_journals_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus_hpc.results.sources._MAX_OPEN", 2)
    results = make_results(12)
    for rank in range(6):
        journal(tmp_path, 0, rank, results[rank::6])
    out, _ = run_merge(tmp_path, 12)
    with ResultsFile(out) as file:
        assert list(file) == results


def test_missing_rows(tmp_path: Path) -> None:
    results = make_results(6)
    journal(tmp_path, 0, 0, [results[0], results[3]])
    with pytest.raises(JournalError, match="4 of 6 rows are not finished, the first on line 2"):
        run_merge(tmp_path, 6)
    assert not (tmp_path / "out.h5").exists()


def test_torn_tail_is_ignored(tmp_path: Path) -> None:
    results = make_results(2)
    journal(tmp_path, 0, 0, results)
    path = next(tmp_path.glob("*.jnl"))
    path.write_bytes(path.read_bytes() + b"torn")
    _, report = run_merge(tmp_path, 2)
    assert report.num_rows == 2


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal(tmp_path, 0, 0, make_results(2))
    out = tmp_path / "out.h5"
    out.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("janus_hpc.results.durable.replace_synced", fail)
    with pytest.raises(JanusError, match=r"out\.h5: cannot write the results: .*No space left"):
        run_merge(tmp_path, 2)
    assert out.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.tmp"))


def test_the_documented_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spread(tmp_path, make_results(9))
    out, _ = run_merge(tmp_path, 9)
    page = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    exec(example.replace("prompts.h5", str(out)), {})
    shown = capsys.readouterr().out
    assert "id-\u00fc4 failed: empty \u00e9" in shown
    assert all(f"id-\u00fc{row} " in shown for row in range(9))
