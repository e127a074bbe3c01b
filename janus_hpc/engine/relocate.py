"""Brings experts into the slots where a new placement wants them, between two batches.

Only changed slots move, from a rank that has the expert or from the checkpoint. Knows neither why the placement
changes nor how ranks compute by it.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from janus_hpc.comm.links.link import Link, Transfer
from janus_hpc.comm.waits import WaitPolicy, wait_until
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.placement.moves import Move, moves
from janus_hpc.placement.placement import Placement
from janus_hpc.topology import Topology

_CPU = torch.device("cpu")


def plan_moves(old: Placement, new: Placement, topology: Topology) -> list[Move]:
    """All slots that change, with the expert rank each is filled from; pure."""
    nodes = [topology.node_ids[world_rank] for world_rank in topology.expert_ranks]
    return moves(old, new, nodes)


class Relocation:
    """One expert rank's part. `link` connects the expert ranks."""

    def __init__(
        self, experts: ExpertModel, topology: Topology, link: Link, policy: WaitPolicy
    ) -> None:
        self._experts = experts
        self._world_ranks = topology.expert_ranks
        self._link = link
        self._policy = policy

    def move(self, planned: Sequence[Move], old: Placement) -> None:
        """Fill this rank's slots and send what others want of it; CommTimeout as for every wait.

        Layer by layer, so that what comes beside the slots it is for takes at most one layer's memory: a
        slot may hold what another rank still wants. Collective over the expert ranks.
        """
        for _, of_layer in groupby(planned, key=lambda move: move.layer_index):
            self._move_layer(list(of_layer), old)

    def _move_layer(self, planned: Sequence[Move], old: Placement) -> None:
        own = self._experts.expert_rank
        transfers: list[Transfer] = []
        arriving: list[tuple[Move, list[Tensor]]] = []
        for move in planned:
            if move.expert_rank == own and move.source is not None:
                parts = [
                    torch.empty_like(its, device=_CPU) for its in self._weights(move.slot, move)
                ]
                arriving.append((move, parts))
                peer = self._world_ranks[move.source]
                transfers += [
                    self._link.recv(peer, tag, _bytes(its)) for tag, its in enumerate(parts)
                ]
            elif move.source == own:
                slot = old.experts_of(move.layer_index, own).index(move.expert)
                peer = self._world_ranks[move.expert_rank]
                parts = [its.to(_CPU) for its in self._weights(slot, move)]
                transfers += [
                    self._link.send(peer, tag, _bytes(its)) for tag, its in enumerate(parts)
                ]
        self._wait_for(transfers, planned[0].layer_index)
        for move, parts in arriving:
            for target, its in zip(self._weights(move.slot, move), parts, strict=True):
                target.copy_(its)
        for move in planned:
            if move.expert_rank == own and move.source is None:
                self._experts.read_slot(move)

    def _weights(self, slot: int, move: Move) -> tuple[Tensor, Tensor]:
        return self._experts.slot_weights(move.layer_index, slot)

    def _wait_for(self, transfers: list[Transfer], layer_index: int) -> None:
        left = list(transfers)

        def all_done() -> bool:
            left[:] = [its for its in left if not its.is_done()]
            return not left

        def describe() -> str:
            sizes = sum(its.num_bytes for its in left)
            return f"moving experts of MoE layer {layer_index}: {len(left)} messages, {sizes} bytes"

        wait_until(all_done, self._policy, describe)


def _bytes(flat: Tensor) -> Tensor:
    return flat.view(torch.uint8)
