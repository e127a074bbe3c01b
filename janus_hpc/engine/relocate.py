"""Brings experts into the slots where a new placement wants them, between two batches.

Only what changes moves: from a rank that has the expert, or from the checkpoint. Knows neither why the placement
changes nor how ranks compute by it. Both placements have a row for every rank of the world.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from janus_hpc.comm.links.link import Transfer
from janus_hpc.engine.carrier import Carrier
from janus_hpc.experts.expert_weights import ExpertWeights, slot_parts
from janus_hpc.kernels.ops import PackedExperts
from janus_hpc.placement.moves import Move
from janus_hpc.placement.placement import EMPTY, Placement

_CPU = torch.device("cpu")
# What is on its way into a slot: beside the slot, or the slot itself.
Arriving = list[tuple[Move, list[Tensor]]]


class Relocation:
    """One rank's part in the way from `old` to `new`. `stays`: it holds experts under `new`."""

    def __init__(
        self,
        weights: ExpertWeights,
        carrier: Carrier,
        old: Placement,
        new: Placement,
        *,
        stays: bool,
    ) -> None:
        self._weights = weights
        self._carrier = carrier
        self._old, self._new = old, new
        self._stays = stays
        self._own = carrier.world_rank

    def move(self, planned: Sequence[Move]) -> int:
        """Fill this rank's slots and send what others want of it; the bytes that were filled here.

        `planned` is `placement.moves.moves(old, new)`, the same on all ranks. Layer by layer: what lies beside
        the slots takes at most one layer's memory. CommTimeout as for every wait. Collective over the world.
        """
        of_layer: list[list[Move]] = [[] for _ in range(self._weights.num_layers)]
        for move in planned:
            of_layer[move.layer_index].append(move)
        return sum(self._move_layer(index, moves) for index, moves in enumerate(of_layer))

    def _move_layer(self, index: int, planned: Sequence[Move]) -> int:
        before, after = self._room(index)
        # A slot that stays may hold what another rank still wants: what comes for it waits beside it.
        beside = after is before or self._weights.device != _CPU
        sending = self._send(planned, before)
        arriving, receiving = self._receive(planned, after, beside)
        self._carrier.wait(sending + receiving, lambda: f"moving experts of MoE layer {index}")
        if after is None:
            self._weights.layers.pop(index, None)
            return 0
        if beside:
            for move, parts in arriving:
                _copy(slot_parts(after, move.slot), parts)
        self._keep(index, before, after)
        mine = [move for move in planned if move.expert_rank == self._own]
        for move in mine:
            if move.source is None:
                self._weights.read_slot(after, move.slot, index, move.expert)
        self._weights.layers[index] = after
        return sum(its.nbytes for move in mine for its in slot_parts(after, move.slot))

    def _send(self, planned: Sequence[Move], before: PackedExperts | None) -> list[Transfer]:
        transfers: list[Transfer] = []
        for move in planned:
            if move.source == self._own:
                assert before is not None, f"{move=} from a rank without experts"
                slot = self._old.experts_of(move.layer_index, self._own).index(move.expert)
                for tag, its in enumerate(slot_parts(before, slot)):
                    transfers += self._carrier.send(move.expert_rank, tag, its.to(_CPU))
        return transfers

    def _receive(
        self, planned: Sequence[Move], after: PackedExperts | None, beside: bool
    ) -> tuple[Arriving, list[Transfer]]:
        arriving: Arriving = []
        transfers: list[Transfer] = []
        for move in planned:
            if move.expert_rank == self._own and move.source is not None:
                assert after is not None, f"{move=} to a rank without experts"
                parts = list(slot_parts(after, move.slot))
                if beside:
                    parts = [torch.empty_like(its, device=_CPU) for its in parts]
                arriving.append((move, parts))
                for tag, its in enumerate(parts):
                    transfers += self._carrier.recv(move.source, tag, its)
        return arriving, transfers

    def _room(self, index: int) -> tuple[PackedExperts | None, PackedExperts | None]:
        """A layer's memory before and after: the same where the number of slots stays."""
        before = self._weights.layers.get(index)
        if not self._stays:
            return before, None
        if before is not None and before.num_slots == self._new.num_slots:
            return before, before
        return before, self._weights.allocate(self._new.num_slots)

    def _keep(self, index: int, before: PackedExperts | None, after: PackedExperts) -> None:
        """Carry over what stays on this rank, where the layer has new memory."""
        if before is None or after is before:
            return
        held = self._old.experts_of(index, self._own)
        for slot, expert in enumerate(self._new.experts_of(index, self._own)):
            if expert != EMPTY and expert in held:
                _copy(slot_parts(after, slot), slot_parts(before, held.index(expert)))


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, its in zip(targets, sources, strict=True):
        target.copy_(its)
