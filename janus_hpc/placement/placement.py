"""The value that says which expert lies in which slot of which expert rank, layer by layer.

Knows neither how a placement is found nor how weights get there.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

# Legend: L sparse layers, E experts of a layer, R expert ranks, C slots of an expert rank.

EMPTY = -1


@dataclass(frozen=True, eq=False)
class Placement:
    """Which expert each slot holds: slots_LRC int32, an expert id or EMPTY (-1), read-only.

    `epoch` counts the placements of a run from 0; `kind` names the rule that found it (see
    `make.KINDS`), `why` says in words what it was made for. Compare two by their `digest`.
    """

    slots_LRC: npt.NDArray[np.int32]
    num_experts: int
    epoch: int
    kind: str
    why: str = ""

    def __post_init__(self) -> None:
        slots_LRC = np.array(self.slots_LRC, dtype=np.int32, order="C")
        assert slots_LRC.ndim == 3, f"{slots_LRC.shape=}"
        slots_LRC.setflags(write=False)
        object.__setattr__(self, "slots_LRC", slots_LRC)

    @property
    def num_layers(self) -> int:
        """Sparse layers; a layer's index counts these only."""
        return int(self.slots_LRC.shape[0])

    @property
    def num_ranks(self) -> int:
        """Expert ranks."""
        return int(self.slots_LRC.shape[1])

    @property
    def num_slots(self) -> int:
        """Slots of an expert rank in a layer."""
        return int(self.slots_LRC.shape[2])

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the shape, the number of experts and the slots; not over the epoch.

        The same on machines of either byte order.
        """
        head = np.array([*self.slots_LRC.shape, self.num_experts], dtype="<i8").tobytes()
        return hashlib.sha256(head + self.slots_LRC.astype("<i4").tobytes()).hexdigest()

    def experts_of(self, layer_index: int, expert_rank: int) -> list[int]:
        """The experts of a rank in slot order, EMPTY (-1) for an empty slot."""
        return [int(expert) for expert in self.slots_LRC[layer_index, expert_rank]]

    def num_replicas_LE(self) -> npt.NDArray[np.int64]:
        """How many slots of the layer hold each expert."""
        counts_LE = np.zeros((self.num_layers, self.num_experts), dtype=np.int64)
        layers, ranks, slots = np.nonzero(self.slots_LRC != EMPTY)
        np.add.at(counts_LE, (layers, self.slots_LRC[layers, ranks, slots]), 1)
        return counts_LE

    def hosts_LER(self) -> npt.NDArray[np.bool_]:
        """Whether a rank holds a replica of an expert."""
        shape = (self.num_layers, self.num_experts, self.num_ranks)
        hosts_LER = np.zeros(shape, dtype=np.bool_)
        layers, ranks, slots = np.nonzero(self.slots_LRC != EMPTY)
        hosts_LER[layers, self.slots_LRC[layers, ranks, slots], ranks] = True
        return hosts_LER

    def check(self) -> None:
        """AssertionError where an id is out of range, a rank holds two replicas of an expert, or
        an expert has no slot.
        """
        slots_LRC, num_experts = self.slots_LRC, self.num_experts
        wrong = np.argwhere((slots_LRC < EMPTY) | (slots_LRC >= num_experts))
        assert not len(wrong), f"ids out of range at (layer, rank, slot) {wrong[0]}, {num_experts=}"
        sorted_LRC = np.sort(slots_LRC, axis=2)
        twice = (sorted_LRC[:, :, 1:] == sorted_LRC[:, :, :-1]) & (sorted_LRC[:, :, 1:] != EMPTY)
        where = np.argwhere(twice)
        assert not len(where), f"an expert lies twice on one rank: (layer, rank) {where[0][:2]}"
        lost = np.argwhere(self.num_replicas_LE() == 0)
        assert not len(lost), f"(layer, expert) {lost[0]} has no slot"

    def with_epoch(self, epoch: int) -> "Placement":
        """The same placement under another number."""
        return replace(self, epoch=epoch)
