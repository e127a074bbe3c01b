"""Who exchanges with whom, and where each attention rank's rows lie in a step.

Pure: computed alike on every rank from the topology and the step's headers; no MPI, no tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.comm.pulse import Waiting
from janus_hpc.topology import Topology


@dataclass(frozen=True)
class Peers:
    """A rank's place among the active ranks; `attention_role`, `expert_role` are None without
    it.
    """

    topology: Topology
    world_rank: int

    @property
    def num_attention(self) -> int:
        """Ranks that send tokens."""
        return len(self.topology.attention_ranks)

    @property
    def num_expert(self) -> int:
        """Ranks that send outputs."""
        return len(self.topology.expert_ranks)

    @property
    def row_order(self) -> tuple[int, ...]:
        """Attention ranks in the order in which rows lie: node by node, then in world order."""
        nodes = self.topology.node_ids
        return tuple(sorted(self.topology.attention_ranks, key=lambda its: (nodes[its], its)))

    @property
    def attention_role(self) -> int | None:
        """This rank's place among the attention ranks."""
        return place_of(self.topology.attention_ranks, self.world_rank)

    @property
    def expert_role(self) -> int | None:
        """This rank's place among the expert ranks."""
        return place_of(self.topology.expert_ranks, self.world_rank)

    def waiting(self, what: str, world_ranks: Iterable[int]) -> Waiting:
        """Who waits for what and from whom, for messages."""
        ranks = tuple(world_ranks)
        labels = ", ".join(self.topology.label(peer) for peer in ranks)
        return Waiting(
            f"{self.topology.label(self.world_rank)} waits for {what} from {labels}", ranks
        )


class StepLayout:
    """Where rows lie in a step: microbatch after microbatch, attention ranks in role order inside.

    `counts[m][a]`: tokens of attention rank a in microbatch m; `starts[m][a]`: its first row;
    `bases[m]`, `totals[m]`: first row and number of rows of the microbatch.
    """

    def __init__(self, headers: Sequence[StepHeader], num_microbatches: int) -> None:
        most = max(len(header.microbatch_tokens) for header in headers)
        assert most <= num_microbatches, f"{most=} {num_microbatches=}"
        microbatches = range(num_microbatches)
        self.counts = [[header.tokens_in(m) for header in headers] for m in microbatches]
        self.totals = [sum(counts) for counts in self.counts]
        self.bases = [0, *accumulate(self.totals)][:-1]
        self.starts = [
            list(accumulate(counts[:-1], initial=base))
            for base, counts in zip(self.bases, self.counts, strict=True)
        ]

    def rows(self, microbatch: int) -> slice:
        """The rows of a microbatch, of all attention ranks."""
        base = self.bases[microbatch]
        return slice(base, base + self.totals[microbatch])

    def rows_of(self, microbatch: int, attention_role: int) -> slice:
        """The rows of one attention rank in a microbatch."""
        start = self.starts[microbatch][attention_role]
        return slice(start, start + self.counts[microbatch][attention_role])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Maxima an exchange is built for, and the type x rows have on their way."""

    hidden: int
    row_dtype: torch.dtype
    max_tokens_per_rank: int
    num_microbatches: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one x row."""
        return self.hidden * self.row_dtype.itemsize

    def max_rows(self, peers: Peers) -> int:
        """Most rows of a step, over all attention ranks."""
        return peers.num_attention * self.max_tokens_per_rank

    def check(self, header: StepHeader | None, peers: Peers) -> None:
        """A header from attention ranks and only from them, within the maxima."""
        if header is None:
            assert peers.attention_role is None, "an attention rank must give a header"
            return
        assert peers.attention_role is not None, "an expert rank has no header"
        assert header.num_tokens <= self.max_tokens_per_rank, f"{header=} {self=}"


def place_of(world_ranks: Sequence[int], world_rank: int) -> int | None:
    """Where a rank stands among others; None if it does not."""
    return world_ranks.index(world_rank) if world_rank in world_ranks else None
