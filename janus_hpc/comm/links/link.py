"""The contract of a link: bytes from rank to rank, posted and then polled, never waited for.

Knows no layers, rows or steps; what a tag means is its user's.
"""

from typing import Protocol

from torch import Tensor

# Links agree on tags of this many bits: what every MPI library in use takes.
TAG_BITS = 22


class Transfer(Protocol):
    """A message under way. Must be kept until `is_done`; its memory must not change before."""

    num_bytes: int
    """Bytes posted: sent, or expected."""

    def is_done(self) -> bool:
        """Whether the memory may be used again. Drives the link's progress as far as it must.

        LinkError when the message is longer than the memory posted for it, or the link knows that
        the peer is gone; a link that cannot know it leaves that to the time limit of the wait.
        """


class Link(Protocol):
    """Messages between two ranks with one tag arrive in the order they were sent.

    A message may move only while both its ranks call `progress` or `is_done` now and then.

    `name` is "mpi" or "ucx"; `detail` says what carries it, for people (library, transports); `why`
    says by what rule this link was taken.
    """

    name: str
    detail: str
    why: str

    def send(self, world_rank: int, tag: int, memory_B: Tensor) -> Transfer:
        """Start to send a contiguous uint8 tensor, also an empty one, to a peer."""

    def recv(self, world_rank: int, tag: int, memory_B: Tensor) -> Transfer:
        """Post memory for one message of at most its length from this peer with this tag."""

    def progress(self) -> None:
        """Move whatever can move, without waiting."""

    def free(self) -> None:
        """Close. Collective over the ranks the link was made for; nothing may be under way."""
