"""Exports hold the fields of the documented records; without timing they are the same for equal
answers.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.core import FinishReason, RowError, RowResult, SampleResult, TokenLogprobs
from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.commands import results as results_group
from janus_hpc.results.export import export
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.stats import RunStats
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import read_trace

CHOSEN = float(np.float32(-0.1))


def sample(text: str, times: list[float], logprobs: bool = False) -> SampleResult:
    tops = [TokenLogprobs(chosen=CHOSEN, top_ids=[7, 8], top_logprobs=[CHOSEN, float("-inf")])]
    return SampleResult(
        token_ids=[7] * len(times),
        text=text,
        finish_reason=FinishReason.LENGTH,
        stop_reason=None,
        logprobs=tops * len(times) if logprobs else None,
        token_times_s=times,
    )


def rows(shift_s: float = 0.0) -> list[RowResult]:
    times = [0.5 + shift_s, 0.75 + shift_s, 1.0 + shift_s]
    error = RowError(line=4, field="n", reason="wrong")
    return [
        RowResult(
            index=0, id="a", prompt_token_ids=[1, 2], samples=[sample("x\0\U0001f600", times)]
        ),
        RowResult(
            index=1,
            id="b",
            prompt_token_ids=[3],
            samples=[sample("s", times[:1], True), sample("t", [])],
        ),
        RowResult(index=2, id="c", prompt_token_ids=[4], samples=[sample("u", times[:2], True)]),
        RowResult(index=3, id="d", prompt_token_ids=[], samples=[], error=error),
    ]


def make_file(folder: Path, shift_s: float = 0.0, stats: RunStats | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    writer = JournalWriter(folder, 0, 0, bytes(32))
    writer.append_group(rows(shift_s))
    writer.close()
    out = folder / "out.h5"
    attrs = {"model": "m", "created": 12}
    chat = np.array([False, False, True, True])
    merge(folder, out, 4, bytes(32), attrs, chat=chat, stats=stats)
    return out


def exported(path: Path, to: str, timing: bool = True) -> list[dict[str, Any]]:
    out = io.BytesIO()
    export(path, to, out, timing)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_jsonl(tmp_path: Path) -> None:
    first, second, third, failed = exported(make_file(tmp_path), "jsonl")
    assert first == {
        "id": "a",
        "index": 0,
        "finish_reason": "length",
        "stop_reason": None,
        "text": "x\0\U0001f600",
        "token_ids": [7, 7, 7],
        "ttft_s": 0.5,
        "tpot_s": 0.25,
        "token_times_s": [0.5, 0.75, 1.0],
        "finished_at_unix_s": None,
        "prompt_token_ids": [1, 2],
        "error": None,
    }
    position = {"chosen": -0.1, "top_ids": [7, 8], "top_logprobs": [-0.1, None]}
    assert third["logprobs"] == [position, position]
    assert [each["text"] for each in second["samples"]] == ["s", "t"]
    assert (second["text"], second["samples"][1]["ttft_s"]) == ("s", None)
    assert failed["error"] == {"line": 4, "field": "n", "reason": "wrong"}
    assert (failed["finish_reason"], failed["text"], failed["token_ids"]) == ("error", "", [])


def test_float32_is_printed_exactly(tmp_path: Path) -> None:
    out = io.BytesIO()
    export(make_file(tmp_path), "jsonl", out)
    assert b'"chosen":-0.1,' in out.getvalue()
    printed = exported(tmp_path / "out.h5", "jsonl")[2]["logprobs"][0]["chosen"]
    assert np.float32(printed) == np.float32(CHOSEN)


@pytest.mark.parametrize("to", ["jsonl", "openai"])
def test_without_timing_equal_answers_are_equal_bytes(tmp_path: Path, to: str) -> None:
    one, other = io.BytesIO(), io.BytesIO()
    export(make_file(tmp_path / "one"), to, one, timing=False)
    export(make_file(tmp_path / "other", shift_s=3.0), to, other, timing=False)
    assert one.getvalue() == other.getvalue()
    assert b'_s"' not in one.getvalue()


def test_openai(tmp_path: Path) -> None:
    first, second, third, failed = exported(make_file(tmp_path), "openai")
    assert (first["custom_id"], first["error"]) == ("a", None)
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    assert (body["object"], body["model"], body["created"]) == ("text_completion", "m", 12)
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert body["choices"][0]["text"] == "x\0\U0001f600"
    assert [choice["index"] for choice in second["response"]["body"]["choices"]] == [0, 1]
    tops = second["response"]["body"]["choices"][0]["logprobs"]["top_logprobs"]
    assert tops == [{"token_id:7": -0.1, "token_id:8": None}]
    choice = third["response"]["body"]["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "u"}
    assert choice["logprobs"]["content"][0]["token"] == "token_id:7"
    assert failed["response"] is None
    assert failed["error"]["message"] == "line 4, n: wrong"


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    export(make_file(tmp_path), "parquet", out)
    table = parquet.read_table(io.BytesIO(out.getvalue())).to_pylist()
    assert [row["id"] for row in table] == ["a", "b", "c", "d"]
    assert table[0]["text"] == "x\0\U0001f600"
    assert table[2]["logprobs"][0]["top_ids"] == [7, 8]
    assert table[3]["error"]["reason"] == "wrong"
    assert [each["text"] for each in table[1]["samples"]] == ["s", "t"]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow"):
        export(make_file(tmp_path), "parquet", io.BytesIO())


def test_trace(tmp_path: Path) -> None:
    path = make_file(tmp_path / "run", stats=RunStats(routing=make_trace()))
    target = tmp_path / "trace.h5"
    command = ["export", str(path), "--to", "trace", "-o", str(target)]
    assert CliRunner().invoke(results_group, command).exit_code == 0
    assert [each.name for each in target.parent.glob("trace*")] == ["trace.h5"]
    with h5py.File(target) as file, h5py.File(path) as whole:
        assert sorted(file) == ["routing"]
        assert (file.attrs["model"], file.attrs["created"]) == ("m", 12)
        assert dict(file["routing"].attrs) == dict(whole["routing"].attrs)
        assert sorted(file["routing"]) == sorted(whole["routing"])
        for name, dataset in file["routing"].items():
            assert np.array_equal(dataset[()], whole["routing"][name][()]), name
            assert dataset.attrs["sha256"] == whole["routing"][name].attrs["sha256"]
    assert read_trace(target).routes_NK(0).tolist() == [[1, 0], [0, 1]]
    shown = CliRunner().invoke(results_group, ["export", str(path), "--to", "trace"])
    assert shown.stdout_bytes == target.read_bytes()
    CliRunner().invoke(results_group, [*command, "--no-timing"])
    with h5py.File(target) as file:
        assert file.attrs["created"] == 0


def make_trace() -> RoutingTrace:
    return RoutingTrace(
        layer_ids=(3,),
        num_experts=2,
        top_k=2,
        num_tokens_L=np.array([2]),
        counts_LE=np.array([[2, 2]]),
        coactivation_LEE=np.array([[[0, 2], [2, 0]]]),
        num_routes_L=np.array([2]),
        routes_LWK=np.array([[[1, 0], [0, 1], [-1, -1]]], np.int16),
    )


def test_no_trace_to_export(tmp_path: Path) -> None:
    path = make_file(tmp_path / "run")
    command = ["export", str(path), "--to", "trace", "-o", str(tmp_path / "trace.h5")]
    problem = CliRunner().invoke(results_group, command).exception
    assert isinstance(problem, UsageError)
    assert f"{path}: its run recorded no routing" in str(problem)
    assert not list(tmp_path.glob("trace*"))


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: jsonl, openai, parquet, trace"):
        export(make_file(tmp_path), "csv", io.BytesIO())


def test_commands(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    run = CliRunner().invoke
    shown = run(results_group, ["export", str(path), "--no-timing"])
    assert shown.exit_code == 0
    target = tmp_path / "rows.jsonl"
    assert (
        run(results_group, ["export", str(path), "--no-timing", "-o", str(target)]).exit_code == 0
    )
    assert target.read_bytes() == shown.stdout_bytes
    checked = run(results_group, ["verify", str(path)])
    assert (checked.exit_code, "whole; 4 rows, 1 failed, 4 samples" in checked.output) == (0, True)
    path.write_bytes(path.read_bytes()[:-10])
    assert isinstance(run(results_group, ["verify", str(path)]).exception, JournalError)
    before = target.read_bytes()
    again = run(results_group, ["export", str(path), "-o", str(target)])
    assert isinstance(again.exception, JournalError)
    assert target.read_bytes() == before
    assert isinstance(run(results_group, ["verify", "absent.h5"]).exception, UsageError)
