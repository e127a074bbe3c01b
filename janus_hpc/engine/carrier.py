"""The link over which weights come from rank to rank at a batch border, and bounded waits on it.

Knows nothing of what the bytes are.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from janus_hpc.comm.links.link import Link, Transfer
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import WaitPolicy, wait_until
from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig

# No message is longer: MPI counts bytes in 31 bits.
MAX_MESSAGE_BYTES = 256 << 20


class Carrier:
    """Connects all ranks of the world; `world_rank` is this one."""

    def __init__(self, world_rank: int, link: Link, policy: WaitPolicy) -> None:
        self.world_rank = world_rank
        self._link = link
        self._policy = policy

    def send(self, world_rank: int, tag: int, memory: Tensor) -> list[Transfer]:
        """Start to send a contiguous CPU tensor of any type."""
        return [self._link.send(world_rank, tag, its) for its in _messages(memory)]

    def recv(self, world_rank: int, tag: int, memory: Tensor) -> list[Transfer]:
        """Post a contiguous CPU tensor for what the peer sends of the same size."""
        return [self._link.recv(world_rank, tag, its) for its in _messages(memory)]

    def wait(self, transfers: list[Transfer], what: Callable[[], str]) -> None:
        """Return when all are done; CommTimeout as for every wait."""
        left = list(transfers)

        def all_done() -> bool:
            num_before = len(left)
            left[:] = [its for its in left if not its.is_done()]
            if self._policy.pulse is not None:
                # Weights may take longer than a stall is given: each message is a sign of life.
                self._policy.pulse.count += num_before - len(left)
            return not left

        def describe() -> Waiting:
            num_bytes = sum(its.num_bytes for its in left)
            return Waiting(f"{what()}: {len(left)} messages, {num_bytes} bytes")

        wait_until(all_done, self._policy, describe)

    def progress(self) -> None:
        """Move what can move: a message that counts as sent may still need its sender."""
        self._link.progress()

    def free(self) -> None:
        """Close the link. Collective over the world."""
        self._link.free()


def make_carrier(world: World, config: RunConfig, ucx_settings: Mapping[str, str]) -> Carrier:
    """Connect all ranks of the world. Collective over it; UsageError as of `make_link`."""
    policy = world.make_policy(config.comm_timeout_s)
    one_node = len(set(world.node_ids)) == 1
    link = make_link(
        world.comm,
        range(world.world_size),
        "mpi" if one_node else config.inter,
        policy=policy,
        user_settings=ucx_settings,
    )
    return Carrier(world.world_rank, link, policy)


def _messages(memory: Tensor) -> list[Tensor]:
    return list(memory.view(-1).view(torch.uint8).split(MAX_MESSAGE_BYTES))
