"""Microbatches through the layers: who is away when, and that a cut step stores and reads what a whole one does."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_hpc.batcher import even_sizes
from janus_hpc.comm.exchange import Exchange, Routing
from janus_hpc.comm.pulse import Pulse
from janus_hpc.engine.interleave import Interleaved
from janus_hpc.engine.order import exchange_order
from janus_hpc.experts.gate import Gate
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.attention_model import Away, Forward

LAYERS = (1, 2, 4)


class Recorder:
    """An exchange that doubles what is sent, and the model that asks it; notes what happens in order."""

    def __init__(self, gate: str) -> None:
        self.gate = gate
        self.events: list[str] = []
        self.sent: dict[tuple[int, int], torch.Tensor] = {}
        self.routings: list[Routing | None] = []

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: torch.Tensor, routing: Routing | None = None
    ) -> None:
        assert (layer, microbatch) not in self.sent
        self.events.append(f"send {layer}.{microbatch}")
        self.sent[layer, microbatch] = x_TD
        self.routings.append(routing)

    def recv_outputs(self, layer: int, microbatch: int) -> torch.Tensor:
        self.events.append(f"recv {layer}.{microbatch}")
        return 2 * self.sent[layer, microbatch]

    def route(self, layer: int, x_TD: torch.Tensor) -> Routing:
        return Routing(x_TD, x_TD)

    def forward(self, microbatch: int, h_TD: torch.Tensor) -> Forward:
        def shared(layer: int, x_TD: torch.Tensor) -> Callable[[], torch.Tensor]:
            def compute() -> torch.Tensor:
                self.events.append(f"shared {layer}.{microbatch}")
                return x_TD + layer

            return compute

        for layer in LAYERS:
            self.events.append(f"attention {layer}.{microbatch}")
            h_TD = h_TD + (yield Away(layer, h_TD, shared(layer, h_TD)))
        return h_TD

    def run(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        streams = [self.forward(m, part) for m, part in enumerate(parts)]
        step = Interleaved(streams, cast(Exchange, self), cast(Gate, self), Pulse())
        return step.run(exchange_order(LAYERS, len(parts)), lambda layer, microbatch: None)


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (2, 2, 1), (1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("gate", ["egate", "agate"])
def test_outputs_are_those_of_one_microbatch(sizes: tuple[int, ...], gate: str) -> None:
    h_TD = torch.arange(float(3 * sum(sizes))).view(-1, 3)
    recorder = Recorder(gate)
    found = torch.cat(recorder.run(list(h_TD.split(list(sizes)))))
    for layer in LAYERS:
        h_TD = h_TD + 2 * h_TD + (h_TD + layer)
    assert torch.equal(found, h_TD)
    assert all((routing is not None) == (gate == "agate") for routing in recorder.routings)


def test_one_is_in_attention_while_the_other_is_away() -> None:
    recorder = Recorder("egate")
    recorder.run([torch.ones(1, 1), torch.ones(1, 1)])
    at = {event: index for index, event in enumerate(recorder.events)}
    assert len(at) == len(recorder.events)
    for layer, following in zip(LAYERS, (*LAYERS[1:], None), strict=True):
        # Sent before the other computes, and taken after; the same for the other in the next layer.
        assert at[f"send {layer}.0"] < at[f"attention {layer}.1"] < at[f"recv {layer}.0"]
        for m in (0, 1):
            assert at[f"send {layer}.{m}"] < at[f"shared {layer}.{m}"] < at[f"recv {layer}.{m}"]
        if following is not None:
            assert at[f"send {layer}.1"] < at[f"attention {following}.0"] < at[f"recv {layer}.1"]


def test_an_order_with_fewer_layers_than_the_model_is_noticed() -> None:
    recorder = Recorder("egate")
    streams = [recorder.forward(0, torch.ones(1, 1))]
    step = Interleaved(streams, cast(Exchange, recorder), None, Pulse())
    with pytest.raises(AssertionError, match="more MoE layers"):
        step.run(exchange_order(LAYERS[:1], 1), lambda layer, microbatch: None)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_sizes_are_balanced(num_tokens: int, num_microbatches: int) -> None:
    sizes = even_sizes(num_tokens, num_microbatches)
    assert len(sizes) == num_microbatches and sum(sizes) == num_tokens
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@given(st.integers(0, 20), st.integers(1, 4))
def test_a_cut_step_keeps_every_token_with_its_place(num_tokens: int, m: int) -> None:
    ids_T = torch.arange(num_tokens)
    step = StepTokens(
        token_ids_T=ids_T,
        positions_T=ids_T.int() + 1,
        sequence_ids_T=ids_T.int() + 2,
        slots_T=ids_T + 3,
        block_tables_SM=torch.zeros(2, 5, dtype=torch.int32),
        cos_Th=ids_T[:, None] + 4.0,
        sin_Th=ids_T[:, None] + 5.0,
    )
    parts = step.split(even_sizes(num_tokens, m))
    assert len(parts) == m
    for name, whole in vars(step).items():
        column = [cast(Any, getattr(part, name)) for part in parts]
        if name == "block_tables_SM":
            assert all(part is whole for part in column)
        else:
            assert torch.equal(torch.cat(column), whole), name
