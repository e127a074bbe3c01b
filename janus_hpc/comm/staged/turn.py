"""What a rank needs of one microbatch again in every layer of a step: its plan, counters and views.

Worked out once a step; decides nothing and waits for nothing. T: own tokens, N: all of them, D: hidden.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from janus_hpc.comm.layout import Sizes, StepLayout, place_of
from janus_hpc.comm.plan.fabric import Fabric, Group
from janus_hpc.comm.plan.steps import Need, Payload, RankPlan, Rows
from janus_hpc.comm.staged.group_memory import GroupMemory
from janus_hpc.comm.staged.places import Places


class Expected(NamedTuple):
    """A counter that must grow, the rank it takes, and the bytes it stands for."""

    line: int
    world_rank: int
    num_bytes: int


@dataclass(frozen=True)
class Turn:
    """`gathered`, `tokens`, `answered`, `outputs`: counters to wait for before rows of the group
    can be sent, tokens computed, partial sums reduced, outputs added up. `slab_ND`: this expert
    rank's partial sums; `parts_PTD`: all that the outputs of own rows are added up from.
    """

    plan: RankPlan
    num_own: int
    first_own: int
    gathered: tuple[Expected, ...]
    counted: tuple[Expected, ...]
    tokens: tuple[Expected, ...]
    answered: tuple[Expected, ...]
    outputs: tuple[Expected, ...]
    slab_ND: Tensor | None
    parts_PTD: tuple[Tensor, ...]


class TurnMaker:
    """Makes the turns of one rank's steps."""

    def __init__(self, fabric: Fabric, world_rank: int, sizes: Sizes, memory: GroupMemory) -> None:
        self._fabric, self._sizes, self._memory = fabric, sizes, memory
        self.group: Group = fabric.group_of[world_rank]
        self.attention = place_of(self.group.attention, world_rank)
        self.expert = place_of(self.group.experts, world_rank)
        tree = fabric.trees.get(self.group.index, {self.group.index: ()})
        self._children = tree[self.group.index]

    def make(self, plan: RankPlan, layout: StepLayout, places: Places, microbatch: int) -> Turn:
        """The turn of a microbatch."""
        lines, m = self._memory.lines, microbatch
        tokens = self._attention_lines(lines.sent[m], places, m)
        answered = self._expert_lines(lines.answered[m], layout.totals[m])
        landed = [
            Expected(
                lines.landed[m][need.chunk.source, need.chunk.index],
                need.world_rank,
                self._num_bytes(need),
            )
            for need in plan.needs_tokens
        ]
        returned = [
            Expected(
                lines.returned[m][need.origin, need.chunk.index],
                need.world_rank,
                self._num_bytes(need),
            )
            for need in plan.needs_sums
        ]
        all_rows = places.all(Rows(0, layout.totals[m]), m)
        own = Rows(0, 0) if self.attention is None else places.own[m][self.attention]
        before = [] if self.attention is None else [its[self.attention] for its in places.own[:m]]
        return Turn(
            plan=plan,
            num_own=own.num_rows,
            first_own=sum(rows.num_rows for rows in before),
            gathered=tuple(tokens),
            counted=tuple(self._attention_lines(lines.counted[m], places, m)),
            tokens=(*tokens, *landed),
            answered=tuple(answered),
            outputs=(*answered, *returned),
            slab_ND=None if self.expert is None else self._memory.y_END[self.expert, all_rows],
            parts_PTD=self._parts(plan, own, places, m) if own.num_rows else (),
        )

    def returned(self, origin: int, payload: Payload) -> Tensor:
        """Where sums from a child of this group's tree come to, in the type they have."""
        area_ND = self._memory.returned_CND[self._children.index(origin)]
        if payload is Payload.PARTS:
            return area_ND
        return area_ND.view(torch.float32).view(-1, self._sizes.hidden)

    def _parts(self, plan: RankPlan, own: Rows, places: Places, m: int) -> tuple[Tensor, ...]:
        inside = self._memory.y_END[:, places.all(own, m)].unbind()
        origins = dict.fromkeys((need.origin, need.payload) for need in plan.needs_sums)
        back = places.back(own, m)
        return (*inside, *(self.returned(origin, payload)[back] for origin, payload in origins))

    def _attention_lines(self, lines: list[int], places: Places, m: int) -> list[Expected]:
        its = zip(lines, self.group.attention, places.own[m], strict=True)
        row_bytes = self._sizes.row_bytes
        return [Expected(line, rank, rows.num_rows * row_bytes) for line, rank, rows in its]

    def _expert_lines(self, lines: list[int], num_rows: int) -> list[Expected]:
        num_bytes = num_rows * self._sizes.hidden * 8
        its = zip(lines, self.group.experts, strict=True)
        return [Expected(line, rank, num_bytes) for line, rank in its]

    def _num_bytes(self, need: Need) -> int:
        widths = {
            Payload.TOKENS: self._sizes.row_bytes,
            Payload.PARTS: self._sizes.hidden * 8,
            Payload.SUMS: self._sizes.hidden * 4,
        }
        return need.chunk.rows.num_rows * widths[need.payload]
