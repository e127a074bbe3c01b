"""Layers of an exchange without any computing between: dispatch and combine, back to back, timed.

Knows exchanges and made-up rows, no models. T: tokens of one attention rank, K: choices a token,
E: expert ranks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_hpc.batcher import even_sizes
from janus_hpc.comm.exchange import Exchange, Routing, StepHeader
from janus_hpc.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a step carries. num_tokens[a]: tokens of attention role rank a, over all microbatches;
    placement[e]: experts of expert role rank e, contiguous and ascending.
    """

    num_tokens: Sequence[int]
    num_microbatches: int
    hidden: int
    row_dtype: torch.dtype
    top_k: int
    placement: Sequence[range]

    def microbatch_tokens(self, attention: int) -> tuple[int, ...]:
        """Tokens of an attention rank in each microbatch: spread evenly, the first ones larger."""
        return even_sizes(self.num_tokens[attention], self.num_microbatches)

    def expert_ids(self, attention: int) -> Tensor:
        """ids_TK int32: K different experts a token, uniform, ascending; alike on all ranks."""
        generator = torch.Generator().manual_seed(attention)
        size = (self.num_tokens[attention], self.placement[-1].stop)
        choices_TK = torch.rand(size, generator=generator).argsort(dim=1)[:, : self.top_k]
        return choices_TK.sort(dim=1).values.int()

    def owners(self, ids_TK: Tensor) -> Tensor:
        """The expert role rank of each choice, int32."""
        starts = torch.tensor([experts.start for experts in self.placement])
        return torch.searchsorted(starts, ids_TK.long(), right=True).int() - 1

    def routed(self) -> list[list[int]]:
        """routed_AE: rows of attention rank a for the experts of expert rank e."""
        every_owner = [
            self.owners(self.expert_ids(attention)) for attention in range(len(self.num_tokens))
        ]
        num_ranks = len(self.placement)
        return [its.flatten().bincount(minlength=num_ranks).tolist() for its in every_owner]


class LayerTimer:
    """One rank's part in steps that carry one load."""

    def __init__(self, exchange: Exchange, topology: Topology, world_rank: int, load: Load) -> None:
        """Makes the rows. Not collective."""
        self._exchange, self._load = exchange, load
        self._role = topology.roles[world_rank]
        self._header: StepHeader | None = None
        self._rows: list[Tensor] = []
        self._routing: list[Routing | None] = []
        if self._role.does_attention:
            self._header = self._make_rows(topology.attention_ranks.index(world_rank))

    def run(self, num_layers: int) -> list[float]:
        """When each layer ended on an attention rank, seconds since the step was open; [] elsewhere.

        A step of so many layers. Collective over the active ranks.
        """
        self._exchange.open_step(self._header)
        ends_s = []
        started_s = time.perf_counter()
        for layer in range(num_layers):
            self._one_layer(layer)
            ends_s.append(time.perf_counter() - started_s)
        # Sums that others wait for leave before this rank goes on to something else.
        self._exchange.open_step(None if self._header is None else StepHeader(0))
        return ends_s if self._header is not None else []

    def _make_rows(self, attention: int) -> StepHeader:
        load, sizes = self._load, self._load.microbatch_tokens(attention)
        x_TD = torch.ones(sum(sizes), load.hidden, dtype=load.row_dtype)
        self._rows = list(x_TD.split(list(sizes)))
        self._routing = [None] * len(sizes)
        if self._exchange.gate == "agate":
            ids_TK = load.expert_ids(attention)
            self._routing = [
                Routing(ids, torch.full(ids.shape, 1 / load.top_k), load.owners(ids))
                for ids in ids_TK.split(list(sizes))
            ]
        return StepHeader(sum(sizes), microbatch_tokens=sizes)

    def _one_layer(self, layer: int) -> None:
        role, microbatches = self._role, range(self._load.num_microbatches)
        if role.does_attention and not role.does_experts:
            for m in microbatches:
                self._exchange.send_tokens(layer, m, self._rows[m], self._routing[m])
        for m in microbatches:
            if role.does_attention and role.does_experts:
                self._exchange.send_tokens(layer, m, self._rows[m], self._routing[m])
            if role.does_experts:
                self._answer(layer, m)
            if role.does_attention:
                self._exchange.recv_outputs(layer, m)

    def _answer(self, layer: int, m: int) -> None:
        exchange = self._exchange
        if exchange.gate == "agate":
            exchange.recv_routed(layer, m)
        else:
            exchange.recv_tokens(layer, m)
        y_ND = exchange.output_buffer(layer, m, exchange.num_rows(m))
        if layer == 0:
            y_ND.zero_()
        exchange.send_outputs(layer, m, y_ND)
