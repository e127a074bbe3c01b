"""What a check may look at: who the ranks are, what is to be run, and by what limits.

Knows no check.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from janus_hpc.launch import LaunchEnv

if TYPE_CHECKING:
    from janus_hpc.comm.world import World


@dataclass(frozen=True, kw_only=True)
class Target:
    """The run that is to come: `output` is its results file, `threads` a rank (0: chosen)."""

    model_dir: Path
    output: Path
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Places:
    """Node, host and local rank of every world rank, by MPI's word."""

    node_ids: tuple[int, ...]
    hosts: tuple[str, ...]
    local_ranks: tuple[int, ...]

    @property
    def world_size(self) -> int:
        """Ranks of the world."""
        return len(self.node_ids)

    @cached_property
    def ranks_of(self) -> list[list[int]]:
        """World ranks of every node, ascending."""
        nodes = sorted(set(self.node_ids))
        return [[r for r, node in enumerate(self.node_ids) if node == its] for its in nodes]

    @property
    def num_nodes(self) -> int:
        """Nodes of the world."""
        return len(self.ranks_of)

    def host_of(self, node: int) -> str:
        """The host of a node's first rank."""
        return self.hosts[self.ranks_of[node][0]]


@dataclass(frozen=True, kw_only=True)
class Context:
    """One rank's view. `world` is None where there is no MPI; `no_mpi` says why.

    A check that communicates gets a world of its own, whose waits end after `timeout_s`.
    """

    env: LaunchEnv
    places: Places
    world_rank: int
    world: "World | None"
    no_mpi: str
    target: Target
    quick: bool
    timeout_s: float

    @property
    def is_first_on_node(self) -> bool:
        """Whether this rank looks at what all ranks of its node share."""
        return self.places.local_ranks[self.world_rank] == 0

    @property
    def is_alone(self) -> bool:
        """Whether the launcher started more processes than this one's MPI sees."""
        return self.places.world_size == 1 and self.env.world_size > 1


def places_alone(host: str) -> Places:
    """Of a process by itself."""
    return Places(node_ids=(0,), hosts=(host,), local_ranks=(0,))
