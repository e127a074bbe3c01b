"""Shards of a run join into the file that one undisturbed run would have written."""

import io
import json
import random
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.core import RowResult
from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.commands import results as results_group
from janus_hpc.results.export import export
from janus_hpc.results.join import join, join_journals
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.manifest import Launch, Manifest, fingerprint_bytes, save_manifest
from janus_hpc.results.merge import merge
from janus_hpc.results.reader import ResultsFile
from janus_hpc.results.stats import LayerStats, RunStats
from janus_hpc.results.verify import verify
from janus_hpc.rows.index import build_index
from tests.unit.sample_stats import STATS
from tests.unit.test_results_merge import make_results

COUNT = 31
FIELDS = {"input_sha256": "ab", "num_rows": COUNT, "seed": 0}


def results_at(count: int = COUNT) -> list[RowResult]:
    found = make_results(count)
    for row in found:
        row.finished_at_unix_s = 1000.0 + row.index
    return found


def write_shard(
    folder: Path,
    shard: int,
    num_shards: int,
    *,
    stats: RunStats | None = None,
    fields: dict[str, Any] = FIELDS,
    **attrs: Any,
) -> Path:
    """The results file of shard 1..n, from journals of two ranks."""
    folder = folder / f"{shard}of{num_shards}"
    folder.mkdir(parents=True)
    rows = range((shard - 1) * COUNT // num_shards, shard * COUNT // num_shards)
    its = fields | {"first_row": rows.start, "stop_row": rows.stop}
    mine = random.Random(shard).sample(results_at()[rows.start : rows.stop], len(rows))
    for rank in range(2):
        writer = JournalWriter(folder, rank, rank, fingerprint_bytes(its))
        writer.append_group(mine[rank::2])
        writer.close()
    merge(
        folder,
        folder / "out.h5",
        COUNT,
        fingerprint_bytes(its),
        {"fingerprint": its, "model": "m", "slurm": {"job_id": f"7{shard}"}} | attrs,
        stats=stats,
        chat=np.arange(COUNT) % 2 == 0,
        first_row=rows.start,
        stop_row=rows.stop,
    )
    return folder / "out.h5"


def exported(path: Path, to: str, timing: bool = False) -> bytes:
    out = io.BytesIO()
    export(path, to, out, timing)
    return out.getvalue()


def datasets(path: Path, *groups: str) -> dict[str, list[Any]]:
    found = {}
    with h5py.File(path) as file:
        for group in groups:
            for name, dataset in file[group].items():
                found[f"{group}/{name}"] = dataset[()].tobytes()
    return found


def test_a_shard_holds_its_rows_alone(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 2, 3)
    with h5py.File(path) as file:
        start, stop = COUNT // 3, 2 * COUNT // 3
        assert file["rows/index"][:].tolist() == list(range(start, stop))
        assert file["rows/line"][:].tolist() == list(range(start + 1, stop + 1))
        assert set(file["samples/row"][:].tolist()) <= set(range(start, stop))
        assert file["rows/chat"][:].tolist() == [row % 2 == 0 for row in range(start, stop)]
        its = file.attrs
        assert (its["first_row"], its["num_rows"], its["num_input_rows"]) == (
            start,
            stop - start,
            COUNT,
        )
    assert verify(path).findings == []
    with ResultsFile(path) as file:
        assert list(file) == results_at()[start:stop]
        assert [row.index for row in file.rows(3, 5)] == [start + 3, start + 4]


def test_a_shard_that_lies_about_its_first_row(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 2, 3)
    with h5py.File(path, "r+") as file:
        file.attrs["first_row"] = 3
    assert "attributes" in verify(path).findings[0]


def test_rows_outside_and_missing_rows_of_a_shard(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 0, 0, bytes(32))
    writer.append_group(make_results(6)[2:5])
    writer.close()
    out = tmp_path / "out.h5"
    with pytest.raises(JournalError, match=r"00000\.jnl: holds row 2; the shard is rows 3 to 4"):
        merge(tmp_path, out, 6, bytes(32), {}, first_row=3, stop_row=5)
    with pytest.raises(JournalError, match="1 of 4 rows are not finished, the first on line 6"):
        merge(tmp_path, out, 6, bytes(32), {}, first_row=2, stop_row=6)
    merge(tmp_path, out, 6, bytes(32), {}, first_row=2, stop_row=5)
    assert verify(out).findings == []


@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_three_shards_are_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr("janus_hpc.results.columns.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("janus_hpc.results.join_tables._BLOCK_ITEMS", 7)
    whole = write_shard(tmp_path / "whole", 1, 1)
    one, two, three = (write_shard(tmp_path, shard, 3) for shard in (1, 2, 3))
    out = tmp_path / "all.h5"
    report = join([three, one, two], out)
    assert (report.num_rows, report.num_failed) == (COUNT, 6)
    assert verify(out).findings == []
    for to in ("jsonl", "openai"):
        assert exported(out, to) == exported(whole, to)
    assert exported(out, "jsonl", timing=True) == exported(whole, "jsonl", timing=True)
    with ResultsFile(out) as file:
        assert list(file) == results_at()
    # Launches and ranks differ: the shards are other runs.
    found, expected = (datasets(path, "rows", "samples") for path in (out, whole))
    other = {name for name in expected if found[name] != expected[name]}
    assert other == {"rows/launch", "rows/world_rank"}
    with h5py.File(out) as file:
        assert json.loads(file.attrs["fingerprint"]) == FIELDS | {"first_row": 0, "stop_row": COUNT}
        shards = json.loads(file.attrs["shards"])
        assert [its["first_row"] for its in shards] == [0, 10, 20]
        assert [its["num_rows"] for its in shards] == [10, 10, 11]
        assert [its["job_id"] for its in shards] == ["71", "72", "73"]


def test_what_shards_measured(tmp_path: Path) -> None:
    """Numbers follow each other, counts add up, means are weighted by passes."""
    other = RunStats(
        batches=STATS.batches[:1],
        launches=[Launch(0, {"split": "1c"})],
        placements=STATS.placements[:1],
        layers=LayerStats(
            expert_activations=np.ones((2, 3), np.int64),
            a_max_mean=np.array([4.0, 4.0]),
            a_max_max=np.array([9, 1]),
            num_steps=21,
            activated_mean=np.array([3.0, np.nan]),
        ),
        routing=STATS.routing,
    )
    energy = {"joules": 6.0, "tokens": 3, "joules_per_token": 2.0, "sources": ["rapl"]}
    two = write_shard(tmp_path, 2, 2, stats=other, energy=energy | {"sources": ["nvml"]})
    one = write_shard(tmp_path, 1, 2, stats=STATS, energy=energy)
    out = tmp_path / "all.h5"
    join([two, one], out)
    with h5py.File(out) as file:
        assert file["batches/shard"][:].tolist() == [0, 0, 1]
        assert file["batches/epoch"][:].tolist() == [0, 1, 2]
        assert file["placements/epoch"][:].tolist() == [0, 1, 2]
        assert file["placements/shard"][:].tolist() == [0, 0, 1]
        assert file["placements/slots"].shape == (3, 2, 2, 3)
        assert file["placements/slots"][2].tolist() == file["placements/slots"][0].tolist()
        assert file["launches/number"][:].tolist() == [0, 1, 2]
        assert file["launches/shard"][:].tolist() == [0, 0, 1]
        # The second shard's journals name launches 0 and 1.
        assert set(file["rows/launch"][:15].tolist()) == {0, 1}
        assert set(file["rows/launch"][15:].tolist()) == {2, 3}
        assert file["layers/expert_activations"][:].tolist() == [[1, 2, 3], [4, 5, 6]]
        mean = [(1.5 * 7 + 4 * 21) / 28, (2.5 * 7 + 4 * 21) / 28]
        assert np.allclose(file["layers/a_max_mean"][:], mean)
        assert file["layers/a_max_max"][:].tolist() == [9, 3]
        activated = file["layers/activated_mean"][:]
        assert np.isclose(activated[0], (2.25 * 7 + 3 * 21) / 28) and np.isnan(activated[1])
        assert file["layers"].attrs["num_steps"] == 28
        assert file["routing/num_tokens"][:].tolist() == [6, 2]
        expected = {"joules": 12.0, "tokens": 6, "joules_per_token": 2.0}
        assert json.loads(file.attrs["energy"]) == expected | {"sources": ["nvml", "rapl"]}
    assert verify(out).findings == []


def test_joined_files_join(tmp_path: Path) -> None:
    one, two, three = (write_shard(tmp_path, shard, 3, stats=STATS) for shard in (1, 2, 3))
    part, out, direct = tmp_path / "part.h5", tmp_path / "all.h5", tmp_path / "direct.h5"
    join([two, one], part, partial=True)
    assert verify(part).num_rows == 20
    join([three, part], out)
    join([one, two, three], direct)
    groups = ("rows", "samples", "batches", "placements", "launches", "layers")
    found, expected = datasets(out, *groups), datasets(direct, *groups)
    assert {name for name in expected if found[name] != expected[name]} <= {
        "layers/a_max_mean",
        "layers/activated_mean",
    }
    with h5py.File(out) as file, h5py.File(direct) as other:
        assert file.attrs["shards"] == other.attrs["shards"]


def test_shards_that_are_not_one_run(tmp_path: Path) -> None:
    one, two, three = (write_shard(tmp_path, shard, 3) for shard in (1, 2, 3))
    half = write_shard(tmp_path, 2, 2)
    other = write_shard(tmp_path / "other", 2, 3, fields=FIELDS | {"seed": 5})
    out = tmp_path / "all.h5"
    for paths, message in (
        ([one, three], "rows 10 to 19 are missing between .*1of3.*rows 0 to 9.* and .*3of3"),
        ([one, two], "rows 20 to 30 of the input's 31 rows are missing after .*2of3"),
        ([two, three], "rows 0 to 9 of the input's 31 rows are missing before .*2of3"),
        ([one, two, three, half], "2of3.*rows 10 to 19.*2of2.*rows 15 to 30.* overlap"),
        ([one, two, two, three], "overlap; name each shard once"),
        ([one, other, three], r"are of different runs:\n  seed: 0, 5"),
    ):
        with pytest.raises(UsageError, match=message):
            join(paths, out)
    with pytest.raises(UsageError, match="rows 10 to 19 are missing"):
        join([one, three], out, partial=True)
    assert not out.exists() and not list(tmp_path.glob("*.tmp"))
    join([two, three], out, partial=True)
    assert verify(out).findings == []


def test_damage_and_outputs(tmp_path: Path) -> None:
    one, two = (write_shard(tmp_path, shard, 2) for shard in (1, 2))
    out = tmp_path / "all.h5"
    with pytest.raises(UsageError, match="is the file that is read; name another"):
        join([one, two], one, overwrite=True)
    out.write_text("kept")
    with pytest.raises(UsageError, match="give --overwrite"):
        join([one, two], out)
    with h5py.File(two, "r+") as file:
        file["samples/token_ids_values"][0] += 1
    with pytest.raises(JournalError, match=r"2of2/out\.h5: damaged: samples/token_ids_values"):
        join([one, two], out, overwrite=True)
    assert out.read_text() == "kept"


def write_run(
    folder: Path, rows: list[RowResult], info: dict[str, Any] | None = None, **fields: int
) -> Path:
    """A run folder as an interrupted run leaves it."""
    folder.mkdir()
    prompts = folder / "in.jsonl"
    lines = [json.dumps({"messages" if row % 2 == 0 else "prompt": "x"}) for row in range(COUNT)]
    prompts.write_text("\n".join(lines))
    build_index(prompts, folder / "index.bin")
    its = FIELDS | fields
    save_manifest(folder, Manifest(fingerprint=its, launches=[Launch(0, info or {})]))
    writer = JournalWriter(folder, 0, 0, fingerprint_bytes(its))
    writer.append_group(rows)
    writer.close()
    return folder


def test_journals_of_an_interrupted_run(tmp_path: Path) -> None:
    whole = write_shard(tmp_path, 1, 1)
    out = tmp_path / "out.h5"
    run = write_run(tmp_path / "out.h5.run", results_at())
    done = CliRunner().invoke(results_group, ["merge", str(run), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert f"{COUNT} rows" in done.output
    assert exported(out, "jsonl") == exported(whole, "jsonl")
    assert exported(out, "openai").replace(b'"model":""', b'"model":"m"') == exported(
        whole, "openai"
    )
    unfinished = write_run(tmp_path / "b.run", results_at()[:-4])
    with pytest.raises(JournalError, match="4 of 31 rows are not finished"):
        join_journals(unfinished, tmp_path / "b.h5")
    part = write_run(tmp_path / "c.run", results_at()[4:9], first_row=4, stop_row=9)
    join_journals(part, tmp_path / "c.h5")
    with ResultsFile(tmp_path / "c.h5") as file:
        assert list(file) == results_at()[4:9]


def test_the_command(tmp_path: Path) -> None:
    paths = [str(write_shard(tmp_path, shard, 2)) for shard in (1, 2)]
    out = tmp_path / "all.h5"
    ran = CliRunner().invoke(results_group, ["merge", *paths, "-o", str(out)])
    assert ran.exit_code == 0 and f"{out}: {COUNT} rows, 6 failed" in ran.output, ran.output
    run = write_run(tmp_path / "x.run", results_at())
    for arguments, message in (
        ([str(run), paths[0]], "a run folder is merged alone"),
        ([str(run), "--partial"], "--partial is for files"),
        ([str(tmp_path / "absent.h5")], "no such results file"),
    ):
        ran = CliRunner().invoke(results_group, ["merge", *arguments, "-o", str(tmp_path / "o.h5")])
        assert message in str(ran.exception), (ran.output, ran.exception)


def test_what_journals_tell_of_their_run_survives(tmp_path: Path) -> None:
    """Of a run folder the last start's facts; of shards the first that knows its model."""
    info = {"model": "/m", "hosts": ["n1", "n1"], "slurm": {"job_id": "5"}, "argv": ["infer"]}
    run = write_run(tmp_path / "a.run", results_at(), info)
    join_journals(run, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file.attrs["model"], file.attrs["hosts"]) == ("/m", '["n1","n1"]')
        assert "argv" not in file.attrs
    assert b'"model":"/m"' in exported(tmp_path / "a.h5", "openai")
    half = COUNT // 2
    bare = write_run(tmp_path / "b.run", results_at()[:half], first_row=0, stop_row=half)
    join_journals(bare, tmp_path / "b.h5")
    join([tmp_path / "b.h5", write_shard(tmp_path, 2, 2)], tmp_path / "all.h5")
    with ResultsFile(tmp_path / "all.h5") as file:
        assert (file.attrs["model"], file.attrs["first_row"]) == ("m", 0)


def test_merging_says_what_it_does(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path, shard, 2) for shard in (1, 2)]
    said: list[str] = []
    join(paths, tmp_path / "all.h5", progress=said.append)
    assert said == [
        *(f"verifying {path}" for path in paths),
        "joining 2 files",
        "verifying what was written",
    ]
    run = write_run(tmp_path / "x.run", results_at())
    ran = CliRunner().invoke(results_group, ["merge", str(run), "-o", str(tmp_path / "x.h5")])
    assert f"reading the journals in {run}" in ran.stderr and "reading" not in ran.stdout


def test_a_merge_that_is_ended_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write_shard(tmp_path, shard, 2)) for shard in (1, 2)]

    def end(_: Any) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("janus_hpc.results.join.join_layers", end)
    ran = CliRunner().invoke(results_group, ["merge", *paths, "-o", str(tmp_path / "all.h5")])
    assert ran.exit_code == 143
    assert not list(tmp_path.glob("all.h5*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
