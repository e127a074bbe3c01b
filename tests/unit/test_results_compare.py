"""Comparing two results files finds what comparing their exports finds, and says where."""

import io
import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.core import FinishReason, RowError, RowResult, TokenLogprobs
from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.commands import results as results_group
from janus_hpc.results.compare import compare
from janus_hpc.results.compare_text import comparison_lines
from janus_hpc.results.export import export
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from tests.unit.test_results_merge import make_results

COUNT = 40
FIELDS = {"input_sha256": "ab", "seed": 0}


def write(
    folder: Path, results: list[RowResult], first_row: int = 0, num_rows: int = COUNT, **attrs: Any
) -> Path:
    folder.mkdir()
    writer = JournalWriter(folder, 0, 0, bytes(32))
    writer.append_group(results)
    writer.close()
    shard = {"first_row": first_row, "stop_row": first_row + len(results)}
    attrs = {"fingerprint": FIELDS, "created": random.randrange(9)} | attrs
    merge(folder, folder / "out.h5", num_rows, bytes(32), attrs, **shard)
    return folder / "out.h5"


def exported(path: Path) -> list[dict[str, Any]]:
    out = io.BytesIO()
    export(path, "jsonl", out, timing=False)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def later(results: list[RowResult]) -> list[RowResult]:
    """The same answers at other times."""
    for row in results:
        row.finished_at_unix_s = 7.0
        for sample in row.samples:
            sample.token_times_s = [1 + time_s for time_s in sample.token_times_s]
    return results


def change(row: RowResult, rng: random.Random) -> None:
    """Changes one thing of a row."""
    sample = rng.choice(row.samples) if row.samples else None
    if sample is None:
        row.error = RowError(line=1, field="x", reason=f"{rng.random()}")
        return
    changes: list[Callable[[], None]] = [
        lambda: setattr(row, "id", f"{row.id}!"),
        lambda: row.prompt_token_ids.append(1),
        lambda: setattr(row, "samples", row.samples[:-1]),
        lambda: setattr(sample, "text", f"{sample.text}!"),
        lambda: setattr(sample, "finish_reason", FinishReason.ERROR),
        lambda: setattr(sample, "stop_reason", "12"),
    ]
    if sample.token_ids:
        at = rng.randrange(len(sample.token_ids))
        changes.append(lambda: sample.token_ids.__setitem__(at, 7777))
    if sample.logprobs:
        position = rng.randrange(len(sample.logprobs))
        its = sample.logprobs[position]
        bits = struct.unpack("<i", struct.pack("<f", its.chosen))[0] ^ 1
        chosen = struct.unpack("<f", struct.pack("<i", bits))[0]
        new = TokenLogprobs(chosen=chosen, top_ids=its.top_ids, top_logprobs=its.top_logprobs)
        changes.append(lambda: sample.logprobs.__setitem__(position, new))
    rng.choice(changes)()


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_differ_are_those_whose_exports_do(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    other = later(make_results(COUNT))
    for row in rng.sample(other, rng.randrange(8)):
        change(row, rng)
    paths = write(tmp_path / "a", make_results(COUNT)), write(tmp_path / "b", other)
    records = zip(*map(exported, paths), strict=True)
    expected = [one["index"] for one, two in records if one != two]
    found = compare(*paths, limit=COUNT)
    assert [row.index for row in found.rows] == expected
    assert (found.num_compared, found.num_different) == (COUNT, len(expected))
    assert found.same == (not expected) and found.same_fingerprint
    assert compare(*paths[::-1]).num_different == len(expected)


def with_tokens(results: list[RowResult]) -> RowResult:
    """A row whose sample 1 has tokens."""
    return next(
        row for row in results if len(row.samples) > 1 and len(row.samples[1].token_ids) > 1
    )


def test_the_first_differing_token_is_named(tmp_path: Path) -> None:
    one, other = make_results(COUNT), later(make_results(COUNT))
    row, changed = with_tokens(one), with_tokens(other)
    changed.samples[1].token_ids[1] = 5000
    changed.samples[1].text = "something else"
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", other))
    (its,) = found.rows
    assert (its.index, its.kinds) == (row.index, ("token_ids", "text"))
    assert its.place == "token 1 of sample 1"
    before = [row.samples[1].token_ids[0]]
    assert its.found[0] == {"before": before, "from_here": row.samples[1].token_ids[1:]}
    assert its.found[1]["from_here"][0] == 5000
    assert found.kinds == Counter(token_ids=1, text=1)
    assert found.same_input


def test_one_ended_earlier(tmp_path: Path) -> None:
    one, other = make_results(COUNT), make_results(COUNT)
    row = with_tokens(other)
    row.samples[1].token_ids.pop()
    row.samples[1].logprobs = with_tokens(one).samples[1].logprobs = None
    at = len(row.samples[1].token_ids)
    paths = write(tmp_path / "a", one), write(tmp_path / "b", other)
    (its,) = compare(*paths).rows
    assert its.place == f"token {at} of sample 1"
    assert its.found[1]["from_here"] == []
    ran = CliRunner().invoke(results_group, ["compare", *map(str, paths)])
    assert ran.exit_code == 1 and "[end]" in ran.output


def test_other_inputs_are_named_first(tmp_path: Path) -> None:
    one, other = make_results(COUNT), make_results(COUNT)
    other[2].id = "another"
    other[2].samples[0].text = "x"
    other[5].prompt_token_ids = [9, 9]
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", other, seed=3))
    assert not found.same_input
    assert [(its.index, its.kinds[0], its.place) for its in found.rows] == [
        (2, "id", "id"),
        (5, "prompt", "token 0 of prompt"),
    ]
    assert list(found.record()["kinds"])[:2] == ["id", "prompt"]
    assert "the inputs are not the same" in comparison_lines(found)[2]


def logprobs_file(folder: Path, chosen: float, top: float) -> Path:
    results = make_results(1)
    tops = TokenLogprobs(chosen=chosen, top_ids=[1], top_logprobs=[top])
    results[0].samples[0].token_ids = [1]
    results[0].samples[0].logprobs = [tops]
    return write(folder, results, num_rows=1)


def test_log_probabilities_bit_by_bit(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("-inf")
    step = float(np.nextafter(np.float32(-1), np.float32(0)))
    for number, (one, other, kind) in enumerate(
        [
            ((-1.0, nan), (-1.0, nan), None),
            ((-1.0, inf), (-1.0, inf), None),
            ((-1.0, inf), (-1.0, nan), "top_logprobs"),
            ((0.0, 0.5), (-0.0, 0.5), "logprobs"),
            ((-1.0, 0.5), (step, 0.5), "logprobs"),
        ]
    ):
        paths = [
            logprobs_file(tmp_path / f"{number}{side}", *its)
            for side, its in (("a", one), ("b", other))
        ]
        found = compare(*paths)
        assert [its.kinds for its in found.rows] == ([] if kind is None else [(kind,)])
        assert compare(*paths, tolerance=1e-6).same == (kind != "top_logprobs")
        json.loads(json.dumps(found.record(), allow_nan=False))


def test_rows_in_one_alone(tmp_path: Path) -> None:
    results = make_results(COUNT)
    prints = [FIELDS | {"first_row": first, "stop_row": first + 25} for first in (0, 5)]
    one = write(tmp_path / "a", results[:25], fingerprint=prints[0])
    other = write(tmp_path / "b", results[5:30], first_row=5, fingerprint=prints[1])
    found = compare(one, other)
    assert (found.num_compared, found.num_different, found.same) == (20, 0, False)
    assert found.only_in == ([range(5)], [range(25, 30)])
    assert found.same_fingerprint and not found.hints
    ran = CliRunner().invoke(results_group, ["compare", str(one), str(other)])
    assert ran.exit_code == 1
    assert "5 only in A: rows 0 to 4" in ran.output and "only in B: rows 25 to 29" in ran.output


def test_hints_and_limit(tmp_path: Path) -> None:
    one, other = make_results(COUNT), make_results(COUNT)
    for row in other[:7]:
        row.prompt_token_ids = [3, 3, 3, 3, 3]
    config = {"seed": 0, "output": "a.h5"}
    its = write(tmp_path / "a", one, split="1a3e", config=config, hosts=["n1"])
    others = write(
        tmp_path / "b",
        other,
        split="2a2e",
        config=config | {"seed": 1, "output": "b"},
        hosts=["n2"],
    )
    found = compare(its, others, limit=3)
    assert found.hints == {
        "split": ("1a3e", "2a2e"),
        "config.seed": (0, 1),
        "hosts": (["n1"], ["n2"]),
    }
    assert len(found.rows) == 3
    ran = CliRunner().invoke(results_group, ["compare", "--limit", "3", str(its), str(others)])
    assert "and 4 more rows; --limit shows more" in ran.output
    assert "7 with other prompt tokens: not the same input" in ran.output
    assert "split: '1a3e', '2a2e'" in ran.output


def test_exit_codes_and_json(tmp_path: Path) -> None:
    paths = (
        write(tmp_path / "a", make_results(COUNT)),
        write(tmp_path / "b", later(make_results(COUNT))),
    )
    names = [str(path) for path in paths]
    ran = CliRunner().invoke(results_group, ["compare", *names])
    assert ran.exit_code == 0 and f"same: all {COUNT} rows" in ran.output
    ran = CliRunner().invoke(results_group, ["compare", *names, "--json", "-"])
    assert json.loads(ran.output)["same"] is True
    target = tmp_path / "found.json"
    changed = deepcopy(make_results(COUNT))
    changed[0].samples[0].text += "x"
    other = write(tmp_path / "c", changed)
    ran = CliRunner().invoke(
        results_group, ["compare", names[0], str(other), "--json", str(target)]
    )
    assert ran.exit_code == 1
    assert json.loads(target.read_text())["kinds"] == {"text": 1}
    with pytest.raises(UsageError, match="no such results file"):
        compare(paths[0], tmp_path / "absent.h5")
    with h5py.File(paths[1], "r+") as file:
        file["samples/finish_reason"][3] = 9
    with pytest.raises(JournalError, match="unknown finish reason"):
        compare(*paths)


def janus(*arguments: str, stdout: int) -> "subprocess.CompletedProcess[str]":
    code = "from janus_hpc.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_verdict_where_nobody_can_read_it(tmp_path: Path) -> None:
    """A reader that left changes no exit code; what cannot be written is neither of the verdicts."""
    changed = make_results(COUNT)
    changed[0].samples[0].text += "x"
    one, other = write(tmp_path / "a", make_results(COUNT)), write(tmp_path / "b", changed)
    for second, code in ((one, 0), (other, 1)):
        reader, writer = os.pipe()
        os.close(reader)
        ran = janus("results", "compare", str(one), str(second), stdout=writer)
        os.close(writer)
        assert (ran.returncode, ran.stderr) == (code, "")
    full = os.open("/dev/full", os.O_WRONLY)
    for command in (["compare", str(one), str(one)], ["export", str(one)]):
        ran = janus("results", *command, stdout=full)
        assert ran.returncode == 70
        assert ran.stderr == "janus-hpc: No space left on device (errno 28)\n"
    os.close(full)


def test_hints_that_json_has_no_number_for(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name, make_results(3), num_rows=3, slack=slack)
        for name, slack in (("a", float("nan")), ("b", 1.0))
    ]
    ran = CliRunner().invoke(results_group, ["compare", *map(str, paths), "--json", "-"])
    found = json.loads(ran.output, parse_constant=pytest.fail)
    assert found["hints"] == {"slack": ["nan", 1.0]}
