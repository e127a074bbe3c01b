"""The UCX link: tagged messages through ucxx's synchronous core, worker addresses swapped over MPI.

Driven by whoever waits: no thread, no asyncio. Knows no layers, rows or steps. CPU memory only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.links.link import TAG_BITS
from janus_hpc.comm.links.ucx_library import describe, load_ucx, settings
from janus_hpc.comm.objects import allgather_objects, barrier
from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import WaitPolicy, wait_until
from janus_hpc.errors import JanusError, LinkError

# A message's tag is its sender's world rank above these bits.
_RANK_SHIFT = 32
# Its users' tags are below.
_GREETING_TAG = 1 << TAG_BITS
_GREETING_S = 30.0
# ucxx's own `progress` does not return while a peer goes on sending.
_MAX_TURNS = 16
# Pieces of memory whose wrapping is remembered; a step uses the same ones again and again.
_MAX_ARRAYS = 1024


class UcxTransfer:
    """A message under way; keeps its memory alive, and UCX's request, which is cancelled without it."""

    def __init__(
        self, link: "UcxLink", world_rank: int, memory_B: Tensor, what: str, request: Any
    ) -> None:
        self.num_bytes = memory_B.nbytes
        self.world_rank, self.what, self.request = world_rank, what, request
        self._link, self._memory_B, self._done = link, memory_B, False

    def is_done(self) -> bool:
        """Whether the memory may be used again; LinkError as in the contract."""
        self._done = self._done or self._link.is_complete(self)
        return self._done


class UcxLink:
    """One endpoint a peer, receives posted ahead.

    A peer on another node that vanishes is a LinkError; one on this node shows only as a wait
    without an answer, since UCX's shared memory cannot tell.
    """

    name = "ucx"

    def __init__(
        self,
        comm: MPI.Intracomm,
        world_ranks: Sequence[int],
        policy: WaitPolicy,
        why: str = "asked for",
        user_settings: Mapping[str, str] | None = None,
    ) -> None:
        """Connect to every peer and hear from it.

        `comm`'s rank i is world rank `world_ranks[i]`; it is taken over if this succeeds.
        `user_settings`: the UCX_* variables the user set; they win over the link's own.
        LinkError, on every rank alike, where a rank has no ucxx or cannot reach a peer.
        Collective over `comm`.
        """
        self.why, self._comm, self._policy = why, comm, policy
        self._world_ranks, self._world_rank = tuple(world_ranks), world_ranks[comm.rank]
        self._endpoints: dict[int, Any] = {}
        self._agree(lambda: self._open(user_settings or {}))
        addresses = allgather_objects(comm, self._worker.address.tobytes(), policy)
        on_node = self._peers_on_node()
        self._agree(lambda: self._connect(addresses, on_node))
        self._agree(self._greet)

    def send(self, world_rank: int, tag: int, memory_B: Tensor) -> UcxTransfer:
        """Start to send; LinkError when the peer is gone."""
        what = f"sending {memory_B.nbytes} bytes with tag {tag} to world rank {world_rank}"
        key = self._core.UCXXTag(self._world_rank << _RANK_SHIFT | tag)
        try:
            request = self._endpoints[world_rank].tag_send(self._array(memory_B), key)
        except self._core.UCXError as error:
            raise _link_error(what, error) from error
        return UcxTransfer(self, world_rank, memory_B, what, request)

    def recv(self, world_rank: int, tag: int, memory_B: Tensor) -> UcxTransfer:
        """Post memory; the message may be here already."""
        what = f"up to {memory_B.nbytes} bytes with tag {tag} from world rank {world_rank}"
        key = self._core.UCXXTag(world_rank << _RANK_SHIFT | tag)
        try:
            request = self._worker.tag_recv(self._array(memory_B), key, self._core.UCXXTagMaskFull)
        except self._core.UCXError as error:
            raise _link_error(what, error) from error
        return UcxTransfer(self, world_rank, memory_B, what, request)

    def progress(self) -> None:
        """Let UCX work."""
        for _ in range(_MAX_TURNS):
            if not self._worker.progress_once():
                break

    def free(self) -> None:
        """Close the endpoints and free the communicator. Collective over its ranks."""
        # No peer may still wait for bytes of this rank, and none may see it close early.
        barrier(self._comm, self._policy)
        for endpoint in self._endpoints.values():
            endpoint.close_blocking()
        barrier(self._comm, self._policy)
        self._endpoints.clear()
        self._wrap.cache_clear()
        del self._worker, self._context
        self._comm.Free()

    def is_complete(self, transfer: UcxTransfer) -> bool:
        """Whether a transfer is complete, after some progress where it is not."""
        if not transfer.request.completed:
            self.progress()
        if not transfer.request.completed:
            if not self._endpoints[transfer.world_rank].alive:
                raise LinkError(f"UCX link: {transfer.what}: the peer closed the connection")
            return False
        try:
            transfer.request.check_error()
        except self._core.UCXError as error:
            raise _link_error(transfer.what, error) from error
        return True

    def _open(self, user_settings: Mapping[str, str]) -> None:
        core = self._core = load_ucx()
        self._context = core.UCXContext(settings(user_settings), feature_flags=(core.Feature.TAG,))
        self._worker = core.UCXWorker(self._context)
        self._wrap = lru_cache(_MAX_ARRAYS)(_wrap)
        self.detail = describe(core, self._context)

    def _peers_on_node(self) -> set[int]:
        """World ranks that share memory with this one."""
        barrier(self._comm, self._policy)
        node_comm = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        peers = allgather_objects(node_comm, self._world_rank, self._policy)
        node_comm.Free()
        return set(peers)

    def _connect(self, addresses: Sequence[bytes], on_node: set[int]) -> None:
        for world_rank, address in zip(self._world_ranks, addresses, strict=True):
            if world_rank != self._world_rank:
                # With error handling UCX leaves out shared memory, which takes ten times longer.
                self._endpoints[world_rank] = self._core.UCXEndpoint.create_from_worker_address(
                    self._worker,
                    self._core.UCXAddress.create_from_buffer(address),
                    endpoint_error_handling=world_rank not in on_node,
                )

    def _greet(self) -> None:
        """An empty message to and from every peer: UCX connects with the first one."""
        empty = torch.empty(0, dtype=torch.uint8)
        transfers = [self.send(peer, _GREETING_TAG, empty) for peer in self._endpoints]
        transfers += [self.recv(peer, _GREETING_TAG, empty) for peer in self._endpoints]
        policy = replace(self._policy, timeout_s=min(self._policy.timeout_s, _GREETING_S))
        for transfer in transfers:
            what = f"UCX link: {transfer.what}, to connect"
            wait_until(transfer.is_done, policy, partial(Waiting, what))

    def _agree(self, start: Callable[[], None]) -> None:
        """Run a part of the set-up; LinkError on every rank where it failed on any."""
        error = _failure(start)
        errors = allgather_objects(self._comm, error, self._policy)
        failed = [i for i, its in enumerate(errors) if its is not None]
        if failed:
            names = ", ".join(str(self._world_ranks[i]) for i in failed)
            raise LinkError(f"UCX cannot be used on world ranks {names}: {errors[failed[0]]}")

    def _array(self, memory_B: Tensor) -> Any:
        assert memory_B.is_contiguous() and memory_B.device.type == "cpu", f"{memory_B.device=}"
        return self._wrap(memory_B.data_ptr(), memory_B.nbytes)


def _wrap(address: int, num_bytes: int) -> Any:
    """ucxx's view of memory; it owns none, so one that is remembered keeps nothing alive."""
    from ucxx._lib.arr import Array

    return Array(MPI.buffer.fromaddress(address, num_bytes))


def _failure(start: Callable[[], None]) -> str | None:
    """Why the call failed, None if it did not."""
    try:
        start()
    except JanusError as error:
        return str(error)
    # ucxx's errors have no base of this package's, and the class itself may be missing.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _link_error(what: str, error: Exception) -> LinkError:
    return LinkError(f"UCX link: {what}: {type(error).__name__} {error}")
