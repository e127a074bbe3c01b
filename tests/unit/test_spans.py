"""Timelines in bounded memory, and the file that a browser reads."""

import gzip
import itertools
import json
from pathlib import Path

from janus_hpc.watch.chrome import events, join_parts, write_part
from janus_hpc.watch.energy import Energy, EnergyMeter, WrappingCounter, rapl_meter
from janus_hpc.watch.prometheus import Metric, exposition
from janus_hpc.watch.spans import NoSpans, Spans


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 10
        return self.now


def run_steps(spans: Spans, num_steps: int) -> None:
    for _ in range(num_steps):
        spans.next_step()
        for layer in range(4):
            with spans.span("attention", layer, 0):
                pass
    spans.leave_steps()


def test_spans_are_whole_steps_evenly_over_the_run() -> None:
    spans = Spans(100, clock=Clock())
    with spans.span("load"):
        pass
    run_steps(spans, 1000)
    found = spans.all()
    assert found[0].name == "load" and len(found) <= 101 and len(found) > 40
    assert spans.stride == 64 and spans.num_steps == 1000
    # Every 64th step, each with all of its layers: a step takes 80 ns on this clock.
    starts = [its.start_ns for its in found[1:] if its.layer == 0]
    assert {b - a for a, b in itertools.pairwise(starts)} == {64 * 80}
    assert [its.layer for its in found[1:9]] == [0, 1, 2, 3] * 2


def test_ranges_hear_of_every_span_although_none_is_kept() -> None:
    heard: list[str] = []

    class Ranges:
        def range_push(self, name: str) -> None:
            heard.append(name)

        def range_pop(self) -> None:
            heard.append("end")

    spans = Spans(0, Ranges(), clock=Clock())
    run_steps(spans, 2)
    assert heard == ["attention L0 m0", "end", *["attention L1 m0", "end"], *heard[4:]]
    assert len(heard) == 16 and spans.all() == []


def test_no_spans_cost_nothing_and_keep_nothing() -> None:
    with NoSpans().span("x", 1, 2):
        NoSpans().next_step()


def test_parts_become_one_file_on_one_clock(tmp_path: Path) -> None:
    parts = []
    for rank, ahead_ns in enumerate((0.0, 5000.0)):
        spans = Spans(100, clock=Clock())
        run_steps(spans, 1)
        parts.append(tmp_path / f"{rank}.jsonl")
        shift = events(rank, f'expert "{rank}"', spans.all(), lambda at, by=ahead_ns: -by)
        write_part(parts[-1], shift)
    for name in ("t.json", "t.json.gz"):
        join_parts(parts, tmp_path / name, {"clock_error_us": 1.5})
        opened = gzip.open if name.endswith("gz") else open
        with opened(tmp_path / name, "rt") as file:
            whole = json.load(file)
        assert whole["otherData"] == {"clock_error_us": 1.5}
        spans_of = [its for its in whole["traceEvents"] if its["ph"] == "X"]
        assert len(spans_of) == 8
        first = [its for its in spans_of if its["args"]["layer"] == 0]
        assert [its["ts"] for its in first] == [0.01, 0.01 - 5.0]
        assert {its["dur"] for its in spans_of} == {0.01}
        names = [
            its["args"]["name"] for its in whole["traceEvents"] if its["name"] == "process_name"
        ]
        assert names == ['rank 0: expert "0"', 'rank 1: expert "1"']


def test_a_counter_that_wraps() -> None:
    values = iter([90, 95, 5, 50, 10])
    counter = WrappingCounter(lambda: next(values), 100)
    for _ in range(4):
        counter.poll()
    assert counter.joules() == (5 + 10 + 45 + 60) / 1e6


def test_energy_is_known_of_all_or_not_at_all(tmp_path: Path) -> None:
    for number, (name, value) in enumerate([("package-0", 1000), ("core", 7), ("dram", 10)]):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("100000\n")
    meter = rapl_meter(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("3000000")
    (tmp_path / "intel-rapl:1/energy_uj").write_text("9000000")
    (tmp_path / "intel-rapl:2/energy_uj").write_text("1000010")
    known = meter.read()
    assert known.joules == (3000000 - 1000 + 1000010 - 10) / 1e6
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    unknown = meter.read()
    assert unknown.joules is None and "energy_uj" in unknown.why
    assert Energy.total([known, known]).joules == 2 * known.joules
    assert Energy.total([known, unknown]).joules is None
    assert Energy.total([]).joules is None
    assert rapl_meter(tmp_path / "nowhere").read().joules is None
    assert EnergyMeter([], "x").read().joules == 0.0


def test_metrics_in_prometheus_format() -> None:
    text = exposition(
        [
            Metric("janus_rows", "gauge", "rows", [({}, 5.0)]),
            Metric("janus_none", "gauge", "nothing", []),
            Metric("janus_state", "gauge", "state", [({"state": 'a"b\\c\n'}, 1.0)]),
        ]
    )
    assert text == (
        "# HELP janus_rows rows\n# TYPE janus_rows gauge\njanus_rows 5\n"
        "# HELP janus_state state\n# TYPE janus_state gauge\n"
        'janus_state{state="a\\"b\\\\c\\n"} 1\n'
    )
