"""Between two batches: the placement of the next one, decided by rank 0 and carried out by all.

Every call is collective over the world. Knows nothing of rows.
"""

import logging
import time

from janus_hpc.comm.links.link import Link
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.waits import WaitPolicy, make_policy
from janus_hpc.engine.account import Account
from janus_hpc.engine.parts import Part
from janus_hpc.engine.rebalance import Decision, decide
from janus_hpc.engine.relocate import Relocation, plan_moves
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.errors import JanusError
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.placement.placement import Placement

log = logging.getLogger(__name__)


class Border:
    """Holds the placement in force. `slots_moved` and `move_s` are of the last change."""

    def __init__(self, setup: EngineSetup, part: Part) -> None:
        self.placement = setup.placement
        self.slots_moved = 0
        self.move_s = 0.0
        self._setup = setup
        self._part = part
        self._link: Link | None = None

    def cross(self, account: Account | None) -> None:
        """Decide on rank 0, which alone has an account, and move. Waits for moves are bounded."""
        world = self._setup.world
        decision = None if account is None else self._decide(account)
        agreed: Decision = world.bcast(decision)
        if world.world_rank == 0:
            verb = "stay" if agreed.placement is None else "move"
            log.info("experts %s (%s)", verb, agreed.why)
        self.slots_moved, self.move_s = 0, 0.0
        if agreed.placement is not None:
            self._move(agreed.placement)

    def check(self) -> None:
        """JanusError on every rank unless all compute by the same placement."""
        world, loaded = self._setup.world, self._part.loaded
        sides = (loaded.experts, loaded.gate)
        holders = [its.balancer.placement for its in sides if its is not None]
        mine = {(its.epoch, its.digest) for its in (*holders, self.placement)}
        found = sorted(set().union(*world.allgather(mine)))
        if len(found) > 1:
            world.agree(JanusError(f"ranks have different placements (epoch, digest): {found}"))

    def free(self) -> None:
        """Close the link. Collective over the expert ranks."""
        if self._link is not None:
            self._link.free()

    def _decide(self, account: Account) -> Decision:
        setup, topology = self._setup, self._setup.topology
        ops = setup.ops
        return decide(
            setup.config,
            setup.spec,
            self.placement,
            [topology.node_ids[world_rank] for world_rank in topology.expert_ranks],
            account.trace,
            account.tokens_per_pass,
            ops.balance_library if isinstance(ops, NativeOps) else None,
        )

    def _move(self, new: Placement) -> None:
        setup, loaded = self._setup, self._part.loaded
        started_s = time.monotonic()
        planned = plan_moves(self.placement, new, setup.topology)
        if loaded.experts is not None:
            relocation = Relocation(loaded.experts, setup.topology, self._connect(), self._policy())
            relocation.move(planned, self.placement)
            loaded.experts.use(new)
        if loaded.gate is not None:
            loaded.gate.balancer.use(new)
        # A message that counts as sent may still need its sender to arrive.
        setup.world.barrier(None if self._link is None else self._link.progress)
        self.placement = new
        self.slots_moved, self.move_s = len(planned), time.monotonic() - started_s
        if setup.world.world_rank == 0:
            num_read = sum(move.source is None for move in planned)
            log.info(
                "%d slots filled in %.3g s, %d of them from the checkpoint",
                len(planned),
                self.move_s,
                num_read,
            )

    def _connect(self) -> Link:
        """The link between expert ranks, made for the first move. Collective over them."""
        if self._link is None:
            setup = self._setup
            ranks = setup.topology.expert_ranks
            self._link = make_link(
                setup.world.comm,
                ranks,
                "mpi" if setup.topology.same_node(ranks) else setup.config.inter,
                policy=self._policy(),
                user_settings=setup.ucx_settings,
            )
        return self._link

    def _policy(self) -> WaitPolicy:
        world = self._setup.world
        return make_policy(self._setup.config.comm_timeout_s, ranks_per_core=world.ranks_per_core)
