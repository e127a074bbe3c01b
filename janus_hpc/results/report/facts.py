"""What a report says in figures: read once from a results file, plain values.

Times in seconds, NaN where unknown. Knows nothing of how it is shown.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from janus_hpc.errors import JournalError
from janus_hpc.results.access import Columns
from janus_hpc.results.attributes import decoded, read_attributes
from janus_hpc.results.report.streams import (
    Stream,
    Summary,
    column_stream,
    known,
    quantiles,
    summarize,
)
from janus_hpc.results.schema import BATCH_COLUMNS
from janus_hpc.routing.storage import H5_ERRORS

QUANTILES = (0.5, 0.9, 0.99)
_BLOCK = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The samples' times of one kind, and their quantiles p50, p90, p99."""

    stream: Stream
    summary: Summary
    p50_s: float
    p90_s: float
    p99_s: float


class Facts:
    """A results file's figures. Raises JournalError where the file is damaged."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        try:
            self.attrs = {
                name: decoded(value) for name, value in read_attributes(columns.file).items()
            }
            self.num_rows = int(self.attrs["num_rows"])
            self.num_failed = int(self.attrs["num_failed"])
            self.num_samples = int(self.attrs["num_samples"])
        except (KeyError, ValueError, TypeError, *H5_ERRORS) as error:
            raise JournalError(f"{columns.file.filename}: damaged attributes: {error}") from None
        self.num_tokens = len(columns.dataset("samples/token_ids_values"))
        self.num_prompt_tokens = len(columns.dataset("rows/prompt_token_ids_values"))
        self.batches = Batches(columns)

    @cached_property
    def tpot(self) -> Latency:
        """Mean time per output token after the first, of each sample with two tokens or more."""
        return _latency(self.columns, "samples/tpot_s")

    @cached_property
    def ttft(self) -> Latency:
        """Time from a row's admission to the first token of each sample."""
        return _latency(self.columns, "samples/ttft_s")

    @property
    def on_gpu(self) -> bool:
        return str(self.attrs.get("device", "")).startswith("cuda")

    @property
    def slo_tpot_s(self) -> float:
        """The longest time per output token that was asked for, NaN for none."""
        slo_ms = _number(self._config().get("slo_tpot_ms"))
        return slo_ms / 1e3 if slo_ms > 0 else math.nan

    @property
    def slo_percentile(self) -> str:
        return "p99" if self._config().get("slo_percentile") == "p99" else "mean"

    @property
    def slo_measured_s(self) -> float:
        """What the SLO is held against."""
        return self.tpot.p99_s if self.slo_percentile == "p99" else self.tpot.summary.mean

    @property
    def energy(self) -> dict[str, Any]:
        """Joules, tokens, joules a token and sources; empty where nothing told them."""
        found = self.attrs.get("energy")
        return found if isinstance(found, dict) else {}

    def _config(self) -> dict[str, Any]:
        found = self.attrs.get("config")
        return found if isinstance(found, dict) else {}


class Batches:
    """The batches of the file: `numbers` holds their columns, texts are read where needed."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.count = len(columns.dataset("batches/num_rows"))
        self.numbers: dict[str, npt.NDArray[Any]] = {
            name: columns.read(f"batches/{name}", 0, self.count) for name in BATCH_COLUMNS
        }

    def texts(self, name: str, start: int, stop: int) -> list[str]:
        """Items of a text column. Raises JournalError."""
        return self._columns.read_texts(f"batches/{name}", start, stop, errors="replace")

    @cached_property
    def roles(self) -> list[str]:
        """The letters of every batch's ranks."""
        return self._few("roles")

    @cached_property
    def splits(self) -> list[str]:
        """Every batch's split."""
        return self._few("split")

    def _few(self, name: str) -> list[str]:
        """A column of few different texts; each is kept once."""
        kept: dict[str, str] = {}
        return [
            kept.setdefault(its, its)
            for start in range(0, self.count, _BLOCK)
            for its in self.texts(name, start, min(start + _BLOCK, self.count))
        ]

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that have batches."""
        found: list[int] = np.unique(self.numbers["shard"]).tolist()
        return found

    def of_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """The batches of one shard."""
        return np.flatnonzero(self.numbers["shard"] == shard)

    def span_s(self, shard: int) -> float:
        """From the beginning of a shard's first batch to the end of its last."""
        its = self.of_shard(shard)
        began, seconds = self.numbers["began_s"][its], self.numbers["seconds"][its]
        return float((began + seconds).max() - began.min())

    @cached_property
    def answering_s(self) -> float:
        """The spans of all shards together; NaN without batches."""
        return sum(map(self.span_s, self.shards)) if self.count else math.nan

    @cached_property
    def tokens_per_s(self) -> float:
        """Generated tokens a second while answering, of a shard where there are several."""
        tokens = int(self.numbers["num_tokens"].sum())
        return tokens / self.answering_s if self.count and self.answering_s > 0 else math.nan

    @cached_property
    def rank_hours(self) -> float:
        """Hours of all ranks, parked ones included, while answering; NaN where roles are unknown."""
        if not self.count or not any(self.roles):
            return math.nan
        return sum(
            max(len(self.roles[at]) for at in self.of_shard(shard)) * self.span_s(shard) / 3600
            for shard in self.shards
        )

    @cached_property
    def role_shares(self) -> dict[str, float]:
        """Of the ranks' time in batches, the share spent in each role, by its letter."""
        spent: dict[str, float] = {}
        for roles, seconds in zip(self.roles, self.numbers["seconds"].tolist(), strict=True):
            for letter in set(roles):
                spent[letter] = spent.get(letter, 0.0) + seconds * roles.count(letter)
        total = sum(spent.values())
        return {letter: its / total for letter, its in spent.items()} if total > 0 else {}


def _latency(columns: Columns, name: str) -> Latency:
    stream = known(column_stream(columns, name))
    p50_s, p90_s, p99_s = quantiles(stream, QUANTILES)
    return Latency(stream=stream, summary=summarize(stream), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
