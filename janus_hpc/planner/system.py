"""What a plan is made for: profiles of both roles, the work, and limits. And what may be planned: candidates.

Plain data; times are `tpot`'s, bytes `memory`'s, decisions `search`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from janus_hpc.planner.a_max_lookup import AMaxLookup
from janus_hpc.planner.profile_data import Profile

# Legend: X candidates.

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# How tokens cross between nodes; "node" where all ranks share one. An index into this is a candidate's kind.
KINDS = ("node", "direct", "relay", "one-phase")
SPARE_SHARE = 0.25
# Of a value on its way back: float64 where another part is still to be added.
PART_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Context:
    """Tokens that a sequence in decode has behind it: mean and standard deviation over sequences."""

    mean: float
    std: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Measured over predicted, by stage: what batches already run say of the profile."""

    attention: float = 1.0
    moe: float = 1.0
    comm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class System:
    """`attention` and `experts` are profiles of one model, on the hardware of that role: the same one twice
    where ranks are alike. `gate`: agate routes on the attention side, with one-phase all-to-all only.
    """

    attention: Profile
    experts: Profile
    a_max: AMaxLookup
    context: Context
    max_sequences: int = 128
    max_step_tokens: int = 512
    microbatches: tuple[int, ...] = (1, 2, 3, 4)
    ranks_per_node: int = 0
    gate: Literal["egate", "agate"] = "egate"
    part_bytes: int = PART_BYTES
    kinds: tuple[str, ...] = ("direct", "relay", "one-phase")
    factors: Factors = field(default_factory=Factors)
    # The percentile that an SLO is for: a step's time is this much more than its mean.
    slo_ratio: float = 1.0

    @property
    def is_uniform(self) -> bool:
        """Whether every rank can take either role."""
        return self.attention is self.experts

    @property
    def node_size(self) -> int:
        """Ranks of a node: as given, else as in the profile."""
        return self.ranks_per_node or self.attention.hardware.ranks_per_node


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Candidates as columns. On colocated ones num_attention == num_expert are the same ranks."""

    num_attention: Ints
    num_expert: Ints
    num_slots: Ints
    colocated: Bools

    def __len__(self) -> int:
        return len(self.num_attention)

    def num_ranks(self) -> Ints:
        """Ranks of each candidate."""
        ranks: Ints = self.num_attention + np.where(self.colocated, 0, self.num_expert)
        return ranks

    def pick(self, which: Bools | Ints) -> "Grid":
        """Some of them."""
        return Grid(
            num_attention=self.num_attention[which],
            num_expert=self.num_expert[which],
            num_slots=self.num_slots[which],
            colocated=self.colocated[which],
        )


def slot_choices(num_experts: int, num_expert_ranks: int) -> list[int]:
    """The numbers of slots that are tried: as few as needed, and a part more so that replicas even out loads."""
    fewest = -(-num_experts // num_expert_ranks)
    spare = min(num_experts, max(fewest, int(num_experts * (1 + SPARE_SHARE) / num_expert_ranks)))
    twice = min(num_experts, 2 * fewest) if num_expert_ranks > 1 else fewest
    return sorted({fewest, spare, twice})


def make_grid(
    system: System,
    num_attention: Sequence[int],
    num_expert: Sequence[int],
    *,
    colocated: Sequence[int] = (),
    max_ranks: int | None = None,
    slots: int = 0,
) -> Grid:
    """All pairs of these numbers with all numbers of slots (or `slots` alone), at most max_ranks together, then
    the colocated ones. A rank count with more expert ranks than experts is left out.
    """
    num_experts = system.experts.model.num_experts
    parts: list[tuple[Ints, Ints, Ints, Bools]] = []
    numbers_A = np.array(sorted(set(num_attention)), dtype=np.int64)
    wanted = [(False, n) for n in sorted(set(num_expert))] + [(True, n) for n in colocated]
    for together, experts in wanted:
        if not 1 <= experts <= num_experts:
            continue
        most = (
            len(numbers_A) if max_ranks is None else int((numbers_A <= max_ranks - experts).sum())
        )
        attention_A = np.array([experts], dtype=np.int64) if together else numbers_A[:most]
        for count in [slots] if slots else slot_choices(num_experts, experts):
            if count * experts < num_experts or count > num_experts:
                continue
            ones = np.ones(len(attention_A), dtype=np.int64)
            parts.append((attention_A, experts * ones, count * ones, together * ones > 0))
    columns = [np.concatenate(its) for its in zip(*parts, strict=True)] if parts else [
        np.empty(0, dtype=np.int64)
    ] * 4  # fmt: skip
    return Grid(
        num_attention=columns[0].astype(np.int64),
        num_expert=columns[1].astype(np.int64),
        num_slots=columns[2].astype(np.int64),
        colocated=columns[3].astype(np.bool_),
    )
