"""Times of the attention side: the engine's own loop over made-up sequences in decode, without exchange.

Each layer ends where its outputs would be received; what a step does outside its layers shows between steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from janus_hpc.batcher import Batcher, Sequence
from janus_hpc.comm.exchange import RoutedRows, Routing, StepHeader
from janus_hpc.comm.pulse import Pulse
from janus_hpc.core import Row, RowResult, SamplingParams
from janus_hpc.engine.active import ActiveRow, ActiveSample
from janus_hpc.engine.attention_loop import AttentionLoop
from janus_hpc.engine.claims import ClaimQueue
from janus_hpc.engine.ending import NO_HORIZON
from janus_hpc.engine.measure.bed import BLOCK_SIZE, Bed
from janus_hpc.engine.measure.pace import Pace, usual_s
from janus_hpc.engine.tallies import Tallies
from janus_hpc.kvcache import BlockPool

# Legend: b sequences, S tokens behind each.


@dataclass(frozen=True, kw_only=True)
class AttentionTimes:
    """Seconds of a sparse layer, of a dense one (0 without any), and of what is outside the layers; `steps_s`:
    the layers' sum in each step.
    """

    batch: int
    context: int
    sparse_s: float
    dense_s: float
    head_s: float
    steps_s: tuple[float, ...]


class PacedExchange:
    """Moves nothing: a layer's outputs are zeros, and come when all ranks are ready for the next one."""

    kind = "paced"
    why = "measuring"
    gate = "egate"

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._y_TD = torch.empty(0)

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """This rank's own."""
        assert header is not None
        return [header]

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: torch.Tensor, routing: Routing | None = None
    ) -> None:
        """The rows stay where they are."""
        self._y_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)

    def recv_outputs(self, layer: int, microbatch: int) -> torch.Tensor:
        """A timed piece ends, the next begins."""
        self._pace.end()
        self._pace.begin()
        return self._y_TD

    def settle(self) -> None:
        """Nothing is under way."""

    def free(self) -> None:
        """Nothing is held."""

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[torch.Tensor, list[int]]:
        """No expert rank takes part."""
        raise AssertionError(f"{layer=}")

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """No expert rank takes part."""
        raise AssertionError(f"{layer=}")

    def num_rows(self, microbatch: int) -> int:
        """No expert rank takes part."""
        raise AssertionError(f"{microbatch=}")

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> torch.Tensor:
        """No expert rank takes part."""
        raise AssertionError(f"{layer=}")

    def send_outputs(self, layer: int, microbatch: int, y_ND: torch.Tensor) -> None:
        """No expert rank takes part."""
        raise AssertionError(f"{layer=}")


class NoRows:
    """A `RowSource` for a loop that has its sequences already."""

    def admit(self, index: int) -> ActiveRow | RowResult:
        raise AssertionError(f"{index=}")


def least(turns: list[AttentionTimes]) -> AttentionTimes:
    """Of the same point measured again and again: what else goes on only makes it longer."""
    return AttentionTimes(
        batch=turns[0].batch,
        context=turns[0].context,
        sparse_s=min(its.sparse_s for its in turns),
        dense_s=min(its.dense_s for its in turns),
        head_s=min(its.head_s for its in turns),
        steps_s=tuple(step_s for its in turns for step_s in its.steps_s),
    )


def attention_times(bed: Bed, num_sharing: int) -> list[AttentionTimes]:
    """All points, with so many ranks of each node at once. Collective over the world."""
    bed.use_threads(num_sharing)
    moe = bed.spec.moe
    # What expert ranks read between two layers does not leave this one's weights in the caches.
    swept = 3 * bed.spec.hidden * moe.width * bed.dtype.itemsize * moe.num_experts
    pace = Pace(bed.world, bed.policy, bed.device, swept)
    pace.calibrate(bed.takes_part(num_sharing))
    return [_point(bed, pace, num_sharing, b, context) for b, context in _points(bed)]


def _points(bed: Bed) -> Iterator[tuple[int, int]]:
    effort, room = bed.effort, bed.cache.num_blocks
    longest = bed.max_context - effort.passes - 2
    contexts = [its for its in effort.contexts if its <= longest] or [max(longest, 1)]
    for context in contexts:
        for b in effort.batches:
            if b * _num_blocks(context, effort.passes) <= room:
                yield b, context


def _num_blocks(context: int, passes: int) -> int:
    return -(-(context + passes + 2) // BLOCK_SIZE)


def _point(bed: Bed, pace: Pace, num_sharing: int, b: int, context: int) -> AttentionTimes:
    num_steps, num_layers = bed.effort.passes + 1, len(bed.spec.sparse_layers)
    pace.begin()
    if bed.takes_part(num_sharing):
        loop = _loop(bed, PacedExchange(pace), b, context, num_steps)
        with torch.inference_mode():
            loop.run()
        pace.end()
    else:
        for _ in range(num_steps * num_layers):
            pace.begin()
    spans = pace.take_s()
    # The first step warms up; after the last one there is what follows its last layer.
    steps = [
        spans[at : at + num_layers] for at in range(num_layers, num_layers * num_steps, num_layers)
    ]
    has_dense = bed.spec.num_layers > num_layers
    sparse_s = usual_s([s for step in steps for s in step[1 + has_dense :]])
    dense_s = usual_s([step[1] for step in steps]) - sparse_s if has_dense else 0.0
    head_s = usual_s([step[0] for step in steps]) - sparse_s
    return AttentionTimes(
        batch=b,
        context=context,
        sparse_s=sparse_s,
        dense_s=max(dense_s, 0.0),
        head_s=max(head_s, 0.0),
        steps_s=tuple(sum(step) for step in steps),
    )


def _loop(bed: Bed, exchange: PacedExchange, b: int, context: int, num_steps: int) -> AttentionLoop:
    """With b sequences in decode that all end after `num_steps` steps."""
    pool = BlockPool(bed.cache.num_blocks)
    batcher: Batcher[ActiveSample] = Batcher(pool, BLOCK_SIZE, b, b)
    prompt = list(np.random.default_rng(b).integers(0, bed.spec.vocab, context).tolist())
    params = SamplingParams(max_tokens=num_steps, ignore_eos=True)
    for index in range(b):
        row = Row(
            index=index,
            line=index + 1,
            id=f"row-{index}",
            explicit_id=False,
            params=params,
            token_ids=prompt,
        )
        active = ActiveRow(row, prompt, None, [], bed.spec.vocab, bed.max_context, 0)
        block_ids = [pool.take() for _ in range(_num_blocks(context, bed.effort.passes))]
        batcher.running.append(Sequence(active.samples[0], context - 1, block_ids))
    return AttentionLoop(
        model=bed.model,
        cache=bed.cache,
        batcher=batcher,
        exchange=exchange,
        num_microbatches=1,
        gate=None,
        claims=ClaimQueue(np.empty(0, dtype=np.int64), 0),
        rows=NoRows(),
        record=lambda result: None,
        leave=lambda rows: None,
        while_away=lambda layer, microbatch: None,
        experts_busy_s=lambda: 0.0,
        stop_asked=lambda: False,
        horizon=NO_HORIZON,
        on_step=lambda headers: None,
        pulse=Pulse(),
        tallies=Tallies(),
    )
