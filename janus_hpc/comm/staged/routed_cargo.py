"""What is dispatched with the gate on the attention side: frames of the rows that were routed there.

Owns where frames are written, sent from, received into and read; knows neither messages nor waits.
"""

from collections.abc import Callable

from torch import Tensor

from janus_hpc.comm.exchange import RoutedRows, Routing
from janus_hpc.comm.layout import Sizes, StepLayout
from janus_hpc.comm.plan.fabric import Fabric, Group, preorder
from janus_hpc.comm.plan.steps import Recv, Send
from janus_hpc.comm.staged.frames import Frame, FrameSizes, lay_out, read_frames
from janus_hpc.comm.staged.group_memory import GroupMemory
from janus_hpc.comm.staged.places import Places
from janus_hpc.comm.staged.routed import Router, read_rows, write_rows


class RoutedCargo:
    """Frames in the group's areas: its own source's, and those received from other sources."""

    gate = "agate"

    def __init__(
        self,
        memory: GroupMemory,
        fabric: Fabric,
        group: Group,
        sizes: Sizes,
        frame_sizes: FrameSizes,
        router: Router,
    ) -> None:
        self._memory, self._fabric, self._group = memory, fabric, group
        self._sizes, self._frame_sizes, self._router = sizes, frame_sizes, router
        ranks = fabric.expert_ranks
        self._first_expert = {
            its.index: ranks.index(its.experts[0]) for its in fabric.groups if its.experts
        }
        self._own: dict[int, dict[int, Frame]] = {}

    def open(self, places: Places, layout: StepLayout) -> None:
        """A new step: frames lie elsewhere."""
        self._places, self._layout = places, layout
        self._tokens = {
            source: places.source_tokens(self._fabric, source) for source in self._fabric.sources
        }

    def put(
        self,
        layer: int,
        microbatch: int,
        attention: int,
        x_TD: Tensor,
        routing: Routing | None,
        await_counts: Callable[[], None],
    ) -> None:
        """Write the rows of the group's attention rank `attention` into its frames.

        Where they begin depends on the counts of its other attention ranks: it writes its own,
        `await_counts` publishes that, and returns when all are there. A rank without tokens cannot
        run ahead here, and the group's first one writes the headers in any case.
        """
        assert routing is not None, "the gate is on the attention side: routing is needed"
        source, memory = self._group.index, self._memory
        choices, x_TD = self._router.choices(routing), x_TD.to("cpu")
        words = memory.lines.routed[microbatch]
        memory.write_words(words[attention], choices.counts)
        await_counts()
        num_experts = len(self._fabric.expert_ranks)
        counts_AE = [memory.read_words(start, num_experts) for start in words]
        start, _ = self._span(source, microbatch)
        frames = lay_out(self._fabric, source, start, counts_AE, self._sizes.row_bytes)
        self._own[microbatch] = frames
        first_token = self._places.own[microbatch][attention].first
        for target, frame in frames.items():
            if attention == 0:
                frame.write_header(memory.frames[source], layer, microbatch)
            first = self._first_expert[target]
            write_rows(frame, memory.frames[source], first, attention, choices, x_TD, first_token)

    def part(self, step: Send | Recv, microbatch: int) -> Tensor:
        """Bytes of the frames of a subtree of the source's tree, to be sent or received."""
        source = step.chunk.source
        memory_B = self._memory.frames[source]
        start, stop = self._span(source, microbatch)
        if isinstance(step, Recv):
            return memory_B[start:stop]
        frames = self._frames(source, microbatch)
        below = list(preorder(self._fabric.trees[source], step.target))
        return memory_B[frames[below[0]].start : frames[below[-1]].stop]

    def rows(self, microbatch: int) -> Tensor:
        """Not with this gate."""
        raise AssertionError("the gate is on the attention side: take recv_routed")

    def routed(self, layer: int, microbatch: int, expert: int) -> RoutedRows:
        """The rows of the group's expert rank `expert`."""
        found = []
        for source in self._fabric.sources:
            if self._tokens[source][microbatch] == 0:
                continue
            memory_B = self._memory.frames[source]
            frame = self._read(source, microbatch)[self._group.index]
            frame.check(memory_B, layer, microbatch)
            found.append((frame, memory_B))
        return read_rows(found, expert, self._sizes.row_dtype, self._sizes.hidden)

    def _frames(self, source: int, microbatch: int) -> dict[int, Frame]:
        """The frames of a source that this group holds."""
        if source == self._group.index:
            return self._own[microbatch]
        return self._read(source, microbatch)

    def _read(self, source: int, microbatch: int) -> dict[int, Frame]:
        start, _ = self._span(source, microbatch)
        group, row_bytes = self._group.index, self._sizes.row_bytes
        return read_frames(
            self._fabric, source, group, self._memory.frames[source], start, row_bytes
        )

    def _span(self, source: int, microbatch: int) -> tuple[int, int]:
        """Bytes that a source's frames can take in a microbatch."""
        before = sum(self._tokens[source][:microbatch])
        after = before + self._tokens[source][microbatch]
        sizes = self._frame_sizes
        return (
            sizes.start(source, before, microbatch),
            sizes.start(source, after, microbatch + 1),
        )
