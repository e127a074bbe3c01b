"""What a plan is asked for: the options as given, and which objective they name. Reads no file."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from janus_hpc.errors import UsageError

Objective = Literal["rate", "speed", "fastest", "cheapest"]
DEFAULT_MAX_RANKS = 64

# Options that cannot both be given, and why.
REFUSED_PAIRS = (
    ("rate", "ranks", "--rate finds the fewest ranks, --ranks is given them"),
    ("rate", "deadline", "a deadline is for rows at the fewest rank-hours"),
    ("ranks", "deadline", "a fixed allocation ends as early as it can anyway"),
    ("ranks", "max_ranks", "--ranks is the limit itself"),
    ("prompts", "rows", "--prompts counts its rows"),
    ("prompts", "mean_prompt", "--prompts measures its rows"),
    ("shape", "model", "both say which model it is"),
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `janus-hpc plan`, each under its name; None where not given."""

    profile: str
    job: Path | None = None
    expert_profile: str | None = None
    shape: str | None = None
    model: Path | None = None
    dtype: str = "auto"
    rate: float | None = None
    ranks: int | None = None
    max_ranks: int | None = None
    prompts: Path | None = None
    rows: int | None = None
    mean_prompt: float | None = None
    mean_answer: float | None = None
    max_tokens: int = 256
    deadline: str | None = None
    slo_tpot_ms: float | None = None
    slo_percentile: Literal["mean", "p99"] = "mean"
    context: float | None = None
    context_std: float | None = None
    ranks_per_node: int | None = None
    price_attention: float | None = None
    price_expert: float | None = None
    trace: Path | None = None
    balance: str = "aebs"
    gate: Literal["egate", "agate"] = "egate"
    slots: int = 0
    max_sequences: int = 128
    max_step_tokens: int = 512
    microbatches: str = "auto"
    exchange: str = "auto"
    baselines: bool = True

    @property
    def has_rows(self) -> bool:
        """Whether it is known which rows are to be answered."""
        return self.prompts is not None or self.rows is not None

    @property
    def objective(self) -> Objective:
        """fewest ranks for a `rate`; highest `speed` of a fixed allocation, or its `fastest` end of these rows;
        the `cheapest` way, in rank-hours, to answer these rows.
        """
        if self.rate is not None:
            return "rate"
        if self.ranks is not None:
            return "fastest" if self.has_rows else "speed"
        return "cheapest"

    @property
    def most_ranks(self) -> int:
        """No candidate has more."""
        return self.ranks or self.max_ranks or DEFAULT_MAX_RANKS

    @property
    def slo_s(self) -> float:
        """Of a step; infinite without one."""
        return math.inf if self.slo_tpot_ms is None else self.slo_tpot_ms / 1000

    @property
    def deadline_s(self) -> float:
        """From the start of the job; infinite without one."""
        return math.inf if self.deadline is None else parse_duration(self.deadline)

    def check(self) -> None:
        """UsageError for options that do not go together, saying which to give."""
        if self.rate is None and self.ranks is None and not self.has_rows:
            raise UsageError(
                "nothing to plan for: give --rate (fewest ranks for so many tokens/s), --ranks (the most of a "
                "fixed allocation), or --prompts or --rows (fewest rank-hours, with or without --deadline)"
            )
        for one, other, why in REFUSED_PAIRS:
            self._refuse_pair(one, other, why)
        if self.deadline is not None and not self.has_rows:
            raise UsageError("--deadline needs rows: give --prompts FILE, or --rows N")
        if self.deadline is not None:
            parse_duration(self.deadline)
        if self.rows is not None and (self.mean_prompt is None or self.mean_answer is None):
            raise UsageError("--rows needs --mean-prompt and --mean-answer, in tokens")
        if self.mean_prompt is not None and self.rows is None:
            raise UsageError("--mean-prompt is for --rows; --context says how long sequences are")
        if self.mean_answer is not None and not self.has_rows:
            raise UsageError("--mean-answer is for --prompts or --rows")
        if self.context is None and not self.has_rows:
            raise UsageError(
                "--context is missing: the mean number of tokens behind a sequence in decode; or give --prompts"
            )
        if self.context_std is not None and self.context is None:
            raise UsageError("--context-std needs --context")

    def _refuse_pair(self, one: str, other: str, why: str) -> None:
        if getattr(self, one) is not None and getattr(self, other) is not None:
            names = [f"--{name.replace('_', '-')}" for name in (one, other)]
            raise UsageError(f"{names[0]} and {names[1]} cannot both be given: {why}")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90.5`, `MM:SS`, `HH:MM:SS` or `D-HH:MM:SS`. UsageError naming these forms."""
    number = r"\d+(?:\.\d+)?"
    found = re.fullmatch(rf"(?:(?:(\d+)-)?(\d+):)?(\d+):({number})|({number})", text, re.ASCII)
    parts = [float(part or 0) for part in found.groups()] if found else []
    days, hours, minutes, seconds, alone = parts or [0.0] * 5
    total = 86400 * days + 3600 * hours + 60 * minutes + seconds + alone
    if not 0 < total < math.inf:
        raise UsageError(
            f"--deadline {text!r}: expected seconds above 0, MM:SS, HH:MM:SS or D-HH:MM:SS"
        )
    return total
