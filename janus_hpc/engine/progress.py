"""How far a run is, told by world rank 0: a bar on a terminal, plain lines elsewhere, and progress.json.

Fed with the step headers every attention rank sees; costs no message of its own.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from janus_hpc.engine.tallies import Counters
from janus_hpc.watch.prometheus import Metric, write_metrics

log = logging.getLogger(__name__)

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.2
FILE_EVERY_S = 2.0
BAR_WIDTH = 30


def progress_path(output: Path) -> Path:
    """The progress file of the run that writes `output`."""
    return output.with_name(f"{output.name}.progress.json")


class Progress:
    """`num_resumed` rows were finished by earlier launches and count as done from the start. Files that cannot be
    written are said once, and the run goes on.
    """

    def __init__(
        self,
        path: Path,
        num_rows: int,
        num_resumed: int,
        num_failed: int,
        metrics: Path | None = None,
        out: TextIO = sys.stderr,
    ) -> None:
        self.path = path
        self.metrics = metrics
        self.num_rows = num_rows
        self.num_resumed = num_resumed
        self.num_failed = num_failed
        self.out = out
        self.bar = out.isatty()
        self.started_s = time.monotonic()
        self._shown_s = self._written_s = float("-inf")
        self.first_row_s: float | None = None
        self._last = Counters(0, 0, 0, 0, 0, 0)
        self._has_failed = False

    def update(self, counters: list[tuple[int, ...]], state: str = "running") -> None:
        """Show and write what is due. `state` other than running is always shown and written."""
        now_s = time.monotonic()
        total = self._last = Counters.total(counters)
        if self.first_row_s is None and total.rows_done > total.rows_failed:
            self.first_row_s = now_s - self.started_s
        ended = state != "running"
        if ended or now_s - self._shown_s >= (BAR_EVERY_S if self.bar else LINE_EVERY_S):
            self._shown_s = now_s
            self._show(self.num_resumed + total.rows_done, self._line(total, now_s), ended)
        if ended or now_s - self._written_s >= FILE_EVERY_S:
            self._written_s = now_s
            self._write(total, now_s, state)

    def complete(self) -> None:
        """The results file is in its place."""
        self._write(self._last, time.monotonic(), "complete")

    def _rate(self, total: Counters, now_s: float) -> tuple[float, float | None]:
        """Tokens a second, and seconds to go (None before the first row)."""
        elapsed_s = max(now_s - self.started_s, 1e-9)
        left = self.num_rows - self.num_resumed - total.rows_done
        eta_s = elapsed_s / total.rows_done * left if total.rows_done else None
        return total.tokens_generated / elapsed_s, eta_s

    def _line(self, total: Counters, now_s: float) -> str:
        done = self.num_resumed + total.rows_done
        tokens_per_s, eta_s = self._rate(total, now_s)
        eta = "?" if eta_s is None else _duration(eta_s)
        return (
            f"{done}/{self.num_rows} rows, {self.num_failed + total.rows_failed} failed, "
            f"{tokens_per_s:.0f} tokens/s, elapsed {_duration(now_s - self.started_s)}, ETA {eta}"
        )

    def _show(self, done: int, line: str, ended: bool) -> None:
        if not self.bar:
            self.out.write(f"progress: {line}\n")
        else:
            filled = BAR_WIDTH * done // max(self.num_rows, 1)
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            self.out.write(f"\r\x1b[K[{bar}] {line}" + ("\n" if ended else ""))
        self.out.flush()

    def _write(self, total: Counters, now_s: float, state: str) -> None:
        tokens_per_s, eta_s = self._rate(total, now_s)
        values = {
            "state": state,
            "rows": self.num_rows,
            "rows_done": self.num_resumed + total.rows_done,
            "rows_failed": self.num_failed + total.rows_failed,
            "rows_in_flight": total.num_running,
            "tokens_generated": total.tokens_generated,
            "tokens_per_s": round(tokens_per_s, 3),
            "elapsed_s": round(now_s - self.started_s, 3),
            "eta_s": None if eta_s is None else round(eta_s, 3),
            "first_row_s": None if self.first_row_s is None else round(self.first_row_s, 3),
            "updated_at_unix_s": round(time.time(), 3),
        }
        try:
            aside = self.path.with_name(self.path.name + ".tmp")
            aside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            os.replace(aside, self.path)
            if self.metrics is not None:
                write_metrics(self.metrics, _metrics(values))
        except OSError as error:
            # The answers do not depend on it.
            if not self._has_failed:
                log.warning(
                    "%s: cannot be written: %s", error.filename or self.path, error.strerror
                )
            self._has_failed = True


_GAUGES = {
    "rows": "rows of this run",
    "rows_in_flight": "rows being answered",
    "tokens_per_s": "output tokens a second since this launch began",
    "eta_s": "seconds to go at this rate",
    "elapsed_s": "seconds since this launch began",
    "updated_at_unix_s": "when this was written",
}
_COUNTERS = {
    "rows_done": "rows finished, earlier launches' included",
    "rows_failed": "rows that ended in an error",
    "tokens_generated": "output tokens of this launch",
}
_STATES = ("running", "merging", "interrupted", "complete")


def _metrics(values: Mapping[str, Any]) -> list[Metric]:
    """What is in progress.json, under Prometheus's names."""
    found = []
    for names, kind, suffix in ((_GAUGES, "gauge", ""), (_COUNTERS, "counter", "_total")):
        for name, text in names.items():
            its = values[name]
            samples: list[tuple[Mapping[str, str], float]] = []
            if its is not None:
                samples.append(({}, float(its)))
            found.append(Metric(f"janus_{name}{suffix}", kind, text, samples))
    states = [({"state": its}, float(values["state"] == its)) for its in _STATES]
    return [*found, Metric("janus_state", "gauge", "1 for the state the run is in", states)]


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
