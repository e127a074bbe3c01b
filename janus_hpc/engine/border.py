"""Between two batches: how to go on, decided by rank 0 and carried out by all: experts move, or ranks change roles.

Every call is collective over the world. Knows neither rows nor how a decision is found.
"""

import logging
import time
from dataclasses import replace

from janus_hpc.engine.account import Account
from janus_hpc.engine.deciders import Decider
from janus_hpc.engine.decision import Assignment, BorderDecision, Standing
from janus_hpc.engine.held import Moved
from janus_hpc.engine.parts import Kept, Part, rebuild_part
from janus_hpc.engine.setup import EngineSetup, with_split
from janus_hpc.errors import JanusError
from janus_hpc.log import relabel
from janus_hpc.placement.placement import Placement
from janus_hpc.placement.world_rows import aligned_with
from janus_hpc.topology import Topology

log = logging.getLogger(__name__)


class Border:
    """Holds what is in force: `setup`, `part`, `assignment`, and how the last border was crossed: `text` says what was
    decided and why.
    """

    def __init__(
        self,
        setup: EngineSetup,
        part: Part,
        kept: Kept,
        assignment: Assignment,
        first: BorderDecision,
        decider: Decider | None,
    ) -> None:
        """`first`: what was decided for the first batch; `decider` counts on world rank 0."""
        self.setup = setup
        self.part = part
        self.assignment = assignment
        self.decision = first
        self.text = f"start: {first.why}"
        self.moved = Moved()
        self.move_s = 0.0
        self._kept = kept
        self._decider = decider
        # What a split with both roles has: where all ranks are colocated there is one.
        asked = setup.config.microbatches
        self._num_microbatches = part.joined.microbatches.num if asked == "auto" else int(asked)

    @property
    def placement(self) -> Placement:
        return self.setup.placement

    def cross(self, account: Account | None, number: int, num_rows_left: int) -> None:
        """Decide on rank 0, which alone has an account, and change. Waits for weights are bounded.

        `number`: of the coming batch.
        """
        with self.setup.world.pulse.spans.span("border"):
            self._cross(account, number, num_rows_left)

    def _cross(self, account: Account | None, number: int, num_rows_left: int) -> None:
        world = self.setup.world
        error: JanusError | None = None
        decision: BorderDecision | None = None
        if account is not None and self._decider is not None:
            try:
                decision = self._decider.decide(account, self._standing(number, num_rows_left))
            except JanusError as problem:
                error = problem
        world.agree(error)
        self._carry_out(world.bcast(decision))

    def check(self) -> None:
        """JanusError on every rank unless all compute by the same placement, with the weights that are stored."""
        world, loaded = self.setup.world, self.part.loaded
        error: JanusError | None = None
        try:
            self.setup.reader.check_unchanged()
        except JanusError as problem:
            error = problem
        world.agree(error)
        sides = (loaded.experts, loaded.gate)
        holders = [its.balancer.placement for its in sides if its is not None]
        mine = {(its.epoch, its.digest) for its in (*holders, self.placement)}
        found = sorted(set().union(*world.allgather(mine)))
        if len(found) > 1:
            world.agree(JanusError(f"ranks have different placements (epoch, digest): {found}"))

    def free(self) -> None:
        """Leave the exchange and close the link."""
        self._leave()
        self._kept.held.free()

    def _leave(self) -> None:
        """Leave the exchange; with the part go the KV cache and what computes under the old split."""
        exchange = self.part.joined.exchange
        del self.part
        if exchange is not None:
            exchange.free()

    def _standing(self, number: int, num_rows_left: int) -> Standing:
        return Standing(
            number=number,
            assignment=self.assignment,
            placement=self.placement,
            num_microbatches=self.part.joined.microbatches.num,
            num_rows_left=num_rows_left,
        )

    def _carry_out(self, decision: BorderDecision) -> None:
        self.decision, self.moved, self.move_s = decision, Moved(), 0.0
        assignment = decision.assignment or self.assignment
        num, why = self._microbatches(assignment, decision)
        world, started_s = self.setup.world, time.monotonic()
        world.pulse.beat("border between batches")
        if assignment != self.assignment or num != self.part.joined.microbatches.num:
            verb = f"re-split {self.assignment.split} -> {assignment.split}"
            self._say(f"{verb} begins: {decision.why}")
            self._resplit(assignment, decision.placement or self.placement, num, why)
        elif decision.placement is not None:
            verb = "experts move"
            self._say(f"{verb} ({decision.why})")
            self._move(decision.placement)
        else:
            verb = "experts stay"
            self._say(f"{verb} ({decision.why})")
            self.text = f"{verb}: {decision.why}"
            return
        self.text = f"{verb}: {decision.why}"
        self.move_s = max(world.allgather(time.monotonic() - started_s))
        self._say(f"{verb} in {self.move_s:.3g} s: {decision.why}")

    def _microbatches(self, assignment: Assignment, decision: BorderDecision) -> tuple[int, str]:
        """How many the coming batch has, and why."""
        if assignment.split.num_colocated:
            return 1, "colocated ranks compute in turn what they would overlap"
        if decision.num_microbatches is None:
            return self._num_microbatches, "as before"
        return decision.num_microbatches, "decided between batches"

    def _move(self, placement: Placement) -> None:
        """Experts move between the expert ranks there are."""
        topology = self.setup.topology
        new = self._aligned(placement, topology)
        self._fill(topology, new)
        self.setup = replace(self.setup, placement=new)
        loaded = self.part.loaded
        if loaded.experts is not None:
            loaded.experts.use(new)
        if loaded.gate is not None:
            loaded.gate.balancer.use(new)

    def _resplit(
        self, assignment: Assignment, placement: Placement, num_microbatches: int, why: str
    ) -> None:
        """Ranks change roles: what is needed no longer is freed, then the rest comes."""
        world = self.setup.world
        self._leave()
        topology = world.topology(assignment.roles)
        relabel(world.label)
        new = self._aligned(placement, topology)
        self._fill(topology, new)
        self.setup = with_split(self.setup, topology, new)
        self.part = rebuild_part(self.setup, self._kept, num_microbatches, why)
        self.assignment = assignment
        if not assignment.split.num_colocated:
            self._num_microbatches = num_microbatches

    def _aligned(self, placement: Placement, topology: Topology) -> Placement:
        """The next placement, what stays on a rank in its slot; under a new number if anything changes."""
        before, old = self.setup.topology.expert_ranks, self.placement
        ranks, size = topology.expert_ranks, topology.world_size
        new = aligned_with(placement, ranks, old, before, size)
        changes = new.digest != old.digest or ranks != before
        return new.with_epoch(old.epoch + 1 if changes else old.epoch)

    def _fill(self, topology: Topology, placement: Placement) -> None:
        held = self._kept.held
        moved = self.moved = held.move(self.setup.topology, self.placement, topology, placement)
        self._say(
            f"filled {moved.num_slots} slots, {moved.num_bytes / 1e6:.3g} MB in {moved.seconds:.3g} s "
            f"({moved.num_bytes / 1e6 / max(moved.seconds, 1e-9):.3g} MB/s), "
            f"{moved.num_read} from the checkpoint"
        )

    def _say(self, line: str) -> None:
        if self.setup.world.world_rank == 0:
            log.info("%s", line)
