"""The report is one page that needs nothing else, shows the file's own figures, and runs nothing
that stands in it.
"""

import base64
import math
import random
import re
import struct
import tracemalloc
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.core import RowError, RowResult
from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.commands import results as results_group
from janus_hpc.results.join import join
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.report import latency, streams
from janus_hpc.results.report.page import report_page
from janus_hpc.results.report.png import data_address
from janus_hpc.results.report.streams import histogram, quantiles, summarize
from janus_hpc.results.report.svg import duration, escape, number
from janus_hpc.results.stats import BatchStats, LayerStats, RunStats
from tests.unit.sample_stats import STATS
from tests.unit.test_results_join import write_shard
from tests.unit.test_results_merge import make_results

COUNT = 60
EVIL = "<script>alert('x')</script>\"&\0\u202e"
GEOMETRY = {"x", "y", "x1", "x2", "y1", "y2", "width", "height", "d", "style", "viewbox"}
VOID = {"meta", "link", "br"}
HEADLINES = ("rows", "failed", "tokens", "tokens-per-s", "tpot", "ttft", "rank-hours")


class Page(HTMLParser):
    """What is on a page: elements with their attributes, figures by key, all text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.values: dict[str, str] = {}
        self.roles: dict[str, float] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        its = dict(attrs)
        self.elements.append((tag, its))
        if tag not in VOID:
            self._open.append(tag)
        if its.get("data-figure"):
            self.values[str(its["data-figure"])] = str(its["data-value"])
        if its.get("data-role"):
            self.roles[str(its["data-role"])] = float(str(its["data-value"]))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write(
    folder: Path,
    results: list[RowResult],
    stats: RunStats | None = None,
    **attrs: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    writer = JournalWriter(folder, 0, 0, bytes(32))
    writer.append_group(results)
    writer.close()
    merge(folder, folder / "out.h5", len(results), bytes(32), attrs, stats=stats)
    return folder / "out.h5"


def timed_results() -> list[RowResult]:
    rng = random.Random(2)
    found = make_results(COUNT)
    for row in found:
        row.finished_at_unix_s = 1e9 + rng.random() * 500
        for sample in row.samples:
            sample.token_times_s = [0.25 + 0.01 * at for at in range(len(sample.token_ids))]
    return found


def batches(roles: list[str]) -> list[BatchStats]:
    return [
        BatchStats(
            plan="",
            split=f"{its.count('a')}a{its.count('e')}e",
            exchange="host",
            num_rows=4,
            num_tokens=100 + at,
            seconds=2.0 + at,
            tpot_s=0.1,
            roles=its,
            decision=f"decision {at}",
            began_s=10.0 * at,
            num_decode_steps=5,
            decode_tpot_s=0.02,
            attention_s=0.01,
            moe_s=0.006,
            comm_s=0.004,
            tpot_predicted_s=0.03,
            num_passes=10,
        )
        for at, its in enumerate(roles)
    ]


def layers(num_layers: int = 60, num_experts: int = 256) -> LayerStats:
    rng = np.random.default_rng(1)
    return LayerStats(
        expert_activations=rng.integers(0, 50, (num_layers, num_experts)),
        a_max_mean=rng.uniform(5, 6, num_layers),
        a_max_max=rng.integers(7, 9, num_layers),
        num_steps=40,
        activated_mean=rng.uniform(9, 10, num_layers),
    )


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    stats = RunStats(batches=batches(["aee", "aae"]), layers=layers())
    path = write(tmp_path, timed_results(), stats, config={"slo_tpot_ms": 12.0}, hosts=["n1", "n1"])
    text = report_page(path)
    page = Page(text)
    names = [name for name, _ in page.elements]
    assert names.count("figure") == 12 and names.count("svg") == 12
    assert not {"script", "iframe", "object", "embed", "img"} & set(names)
    for name, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith("data:"), (name, key, value)
        assert not [key for key in attributes if key.startswith("on")]
    assert "http" not in text and "@import" not in text and "url(" not in text
    for name, attributes in page.elements:
        for key in GEOMETRY & attributes.keys():
            assert not re.search("nan|inf|None", str(attributes[key])), (name, key)
    assert "n1 (2 ranks)" in page.text and "decision 1" in page.text


def test_the_header_says_what_plain_h5py_says(tmp_path: Path) -> None:
    roles = ["aee", "aae", "aap"]
    path = write(tmp_path, timed_results(), RunStats(batches=batches(roles)), device="cpu")
    page = Page(report_page(path))
    with h5py.File(path) as file:
        tpot_s, ttft_s = (file[f"samples/{name}"][:] for name in ("tpot_s", "ttft_s"))
        tpot_s, ttft_s = tpot_s[~np.isnan(tpot_s)], ttft_s[~np.isnan(ttft_s)]
        began, seconds = file["batches/began_s"][:], file["batches/seconds"][:]
        span_s = float((began + seconds)[-1] - began[0])
        expected = {
            "rows": len(file["rows/index"]),
            "failed": int(np.count_nonzero(file["rows/status"][:])),
            "tokens": len(file["samples/token_ids_values"]),
            "tokens-per-s": float(file["batches/num_tokens"][:].sum()) / span_s,
            "tpot": float(tpot_s.mean(dtype=np.float64)),
            "ttft": float(ttft_s.mean(dtype=np.float64)),
            "rank-hours": 3 * span_s / 3600,
        }
    assert set(expected) == set(HEADLINES) == set(page.values)
    for key, value in expected.items():
        assert float(page.values[key]) == pytest.approx(value, rel=1e-9), key
    p99_s = float(np.quantile(tpot_s, 0.99, method="inverted_cdf"))
    assert f"p99 {duration(p99_s)}" in page.text
    spent = {"attention": 2 + 2 * 3 + 2 * 4, "expert": 2 * 2 + 3, "parked": 4}
    total = sum(spent.values())
    assert page.roles == pytest.approx({role: its / total for role, its in spent.items()})


def test_text_from_the_file_is_text(tmp_path: Path) -> None:
    results = timed_results()
    results[1].id = EVIL
    error = RowError(line=3, field=EVIL, reason=f"found {EVIL}")
    results[2] = RowResult(index=2, id=EVIL, prompt_token_ids=[], samples=[], error=error)
    its = batches(["aee"])[0]
    stats = RunStats(
        batches=[BatchStats(**vars(its) | {"decision": EVIL, "split": EVIL, "roles": "<\"'"})],
        launches=STATS.launches,
    )
    attrs = dict.fromkeys(("model", "architecture", "split", "device", "input"), EVIL)
    config = {EVIL: EVIL, "slo_tpot_ms": EVIL}
    energy = {"joules_per_token": 0.5, "joules": EVIL, "sources": [EVIL]}
    path = write(
        tmp_path / "<b>x", results, stats, **attrs, config=config, energy=energy, hosts=[EVIL]
    )
    text = report_page(path)
    page = Page(text)
    assert "<script" not in text and "\0" not in text and "\u202e" not in text
    assert page.text.count("<script>alert('x')</script>\"&") > 8
    assert page.values["energy"] == "0.5"


def test_a_file_that_knows_little(tmp_path: Path) -> None:
    """In place of every plot that has nothing to show stands a sentence."""
    for number_of, results in enumerate(([], make_results(5)[4:5], make_results(3)[:1])):
        for at, row in enumerate(results):
            row.index = at
        path = write(tmp_path / f"{number_of}", results)
        page = Page(report_page(path))
        assert "The file does not say when rows were finished." in page.text
        assert "The file tells of no batches." in page.text
        assert "The run counted no expert activations." in page.text
        assert "The run counted no activated experts." in page.text
        assert page.values["tokens-per-s"] == page.values["rank-hours"] == "nan"
    assert "There are no rows." not in page.text
    empty = Page(report_page(tmp_path / "0" / "out.h5"))
    assert "The file has no rows." in empty.text and "There are no samples." in empty.text


def test_what_a_gpu_and_agate_leave_unknown(tmp_path: Path) -> None:
    nan = math.nan
    its = batches(["ae", "ae"])
    unknown = {"attention_s": nan, "moe_s": nan, "comm_s": nan, "tpot_predicted_s": nan}
    agate = vars(layers(2, 8)) | {"a_max_mean": np.full(2, nan), "activated_mean": None}
    stats = RunStats(
        batches=[BatchStats(**vars(one) | unknown) for one in its], layers=LayerStats(**agate)
    )
    page = Page(report_page(write(tmp_path, timed_results(), stats, device="cuda:0")))
    assert "only the whole step is known" in page.text
    assert "Nothing was predicted" in page.text
    assert "With --gate agate no rank sees all tokens" in page.text
    assert "GPU-hours" in page.text


@pytest.mark.parametrize(("slo_ms", "percentile", "kept"), [(12, "mean", True), (9, "p99", False)])
def test_the_slo(tmp_path: Path, slo_ms: float, percentile: str, kept: bool) -> None:
    """All samples take 10 ms a token."""
    config = {"slo_tpot_ms": slo_ms, "slo_percentile": percentile}
    page = Page(report_page(write(tmp_path, timed_results(), config=config)))
    verdict = "kept" if kept else "missed"
    assert f"SLO {slo_ms}\u202fms ({percentile}) {verdict}" in page.text


def test_errors_are_listed_and_counted(tmp_path: Path) -> None:
    results = [
        RowResult(
            index=at,
            id=f"id{at}",
            prompt_token_ids=[],
            samples=[],
            error=RowError(line=at + 1, field="n", reason=f"reason {at}"),
        )
        for at in range(70)
    ]
    page = Page(report_page(write(tmp_path, results)))
    assert "reason 49" in page.text and "reason 50" not in page.text
    assert "20 more failed" in page.text


def test_joined_shards(tmp_path: Path) -> None:
    """Spans and rank-hours add up over shards, each with its own clock."""
    shards = [
        write_shard(tmp_path, shard, 2, stats=RunStats(batches=batches(roles)))
        for shard, roles in ((1, ["aee", "aae"]), (2, ["ae"]))
    ]
    join(shards, tmp_path / "all.h5")
    page = Page(report_page(tmp_path / "all.h5"))
    spans = 10.0 + 3.0, 2.0
    assert float(page.values["rank-hours"]) == pytest.approx((3 * spans[0] + 2 * spans[1]) / 3600)
    assert float(page.values["tokens-per-s"]) == pytest.approx(301 / sum(spans))
    assert "Tokens/s a shard" in page.text
    assert "(shard 0)" in page.text and "(shard 1)" in page.text


def test_many_batches_are_grouped(tmp_path: Path) -> None:
    stats = RunStats(batches=batches(["a" * 40 + "e" * 88] * 700))
    text = report_page(write(tmp_path, make_results(2), stats))
    assert "Each stands for 8 batches" in text
    assert "500 more; janus-hpc results batches lists all of them" in text
    assert len(text) < 400_000


def test_quantiles_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.lognormal(0, 3, 5000),
        rng.normal(0, 1, 777),
        np.array([-0.0, 0.0, 1e-40, -1e30, 3.0]),
        np.full(10, 2.5),
        np.array([1.0]),
    ):
        its = values.astype(np.float32)
        shares = (0.001, 0.5, 0.9, 0.99, 1.0)
        found = quantiles(lambda its=its: iter(np.array_split(its, 3)), shares)
        expected = [float(np.quantile(its, share, method="inverted_cdf")) for share in shares]
        assert found == expected
    assert all(map(math.isnan, quantiles(lambda: iter(()), (0.5,))))
    summary = summarize(lambda: iter([np.array([1.0, 2.0]), np.array([]), np.array([6.0])]))
    assert (summary.count, summary.mean, summary.least, summary.most) == (3, 3.0, 1.0, 6.0)
    counts, below, above = histogram(lambda: iter([np.array([-1.0, 0, 1, 2, 9])]), np.arange(3.0))
    assert (counts.tolist(), below, above) == ([1, 2], 1, 1)


def test_memory_does_not_grow_with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass over a column sees one block at a time."""
    monkeypatch.setattr(streams, "BLOCK_ITEMS", 512)
    seen: list[int] = []
    original = latency.histogram

    def watched(stream: streams.Stream, edges: Any) -> Any:
        seen.extend(len(values) for values in stream())
        return original(stream, edges)

    monkeypatch.setattr(latency, "histogram", watched)
    path = write(tmp_path, make_results(4000))
    tracemalloc.start()
    report_page(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(seen) == 512 and sum(seen) > 4000
    # The bits of float32 halves take 0.5 MB a table; the page itself some 100 kB.
    assert peak_bytes < 12e6


def test_pictures_are_png(tmp_path: Path) -> None:
    cells = np.arange(6, dtype=np.uint8).reshape(2, 3)
    colours = np.arange(18, dtype=np.uint8).reshape(6, 3)
    data = base64.b64decode(data_address(cells, colours).split(",")[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">IIBB", chunks[b"IHDR"][:10]) == (3, 2, 8, 3)
    assert chunks[b"PLTE"] == colours.tobytes()
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0\0\1\2\0\3\4\5"


def test_numbers_for_a_person() -> None:
    assert [number(its) for its in (0, 0.00304, 1.0, 12.345, 999.4, 1234567, math.nan)] == [
        "0",
        "0.00304",
        "1",
        "12.3",
        "999",
        "1,234,567",
        "\u2013",
    ]
    narrow = "\u202f"
    assert [duration(its) for its in (2e-5, 0.0123, 4, 600, 9000)] == [
        f"20{narrow}\u00b5s",
        f"12.3{narrow}ms",
        f"4{narrow}s",
        f"10{narrow}min",
        f"2.5{narrow}h",
    ]
    assert escape("a\0<b>\"'") == "a\ufffd&lt;b&gt;&quot;&#x27;"


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path, timed_results())
    ran = CliRunner().invoke(results_group, ["report", str(path)])
    assert ran.exit_code == 0 and (tmp_path / "out.html").read_text("utf-8").startswith("<!doctype")
    other = tmp_path / "other.html"
    assert CliRunner().invoke(results_group, ["report", str(path), "-o", str(other)]).exit_code == 0
    assert other.read_bytes() == (tmp_path / "out.html").read_bytes()
    with pytest.raises(UsageError, match="no such results file"):
        report_page(tmp_path / "absent.h5")
    ran = CliRunner().invoke(results_group, ["report", str(path), "-o", str(tmp_path)])
    assert "is a folder" in str(ran.exception)
    with h5py.File(path, "r+") as file:
        del file["samples/tpot_s"]
    with pytest.raises(JournalError, match="samples/tpot_s cannot be opened"):
        report_page(path)
