"""Who has posted what: the flags of one rank in a device exchange, and what to say when one is late.

Owns generations, status and waiting; knows nothing of the rows behind the flags. A wait is a kernel
on the stream, or, where several ranks share a GPU and take turns on it, polling by the host.
"""

from dataclasses import dataclass, field
from math import isinf

import torch
from torch import Tensor

from janus_hpc.comm.device.slots import Slabs
from janus_hpc.comm.layout import Peers
from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import WaitPolicy, wait_until
from janus_hpc.errors import CommTimeout
from janus_hpc.kernels.flags import STATUS_WORDS, Flags, late_flags

# Waits on the device that may last for ever still have an end.
_MAX_BOUND_NS = 1 << 62


def bound_of(policy: WaitPolicy) -> int:
    """The nanoseconds after which a wait on a GPU gives up."""
    return _MAX_BOUND_NS if isinf(policy.timeout_s) else int(policy.timeout_s * 1e9)


@dataclass(kw_only=True)
class Awaited:
    """Flags of this rank, one a sender, for one kind of message in one microbatch.

    `flags` are the words themselves, `addresses` where they are; `senders` world ranks in their
    order. `whats` describe the messages awaited in this step, the first of generation `first`.
    """

    flags: Tensor
    addresses: Tensor
    generation: Tensor
    senders: tuple[int, ...]
    first: int = 1
    whats: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Posted:
    """Flags of other ranks that this one posts to, for one kind of message in one microbatch."""

    addresses: Tensor
    generation: Tensor


class Signals:
    """Posts and waits of one rank, in the order of its current stream."""

    def __init__(
        self, slabs: Slabs, peers: Peers, policy: WaitPolicy, flags: Flags, bound: int
    ) -> None:
        """`bound` as in `Flags.wait`."""
        self._peers, self._policy, self._flags, self._bound = peers, policy, flags, bound
        self._device, self._waits_on_device = slabs.device, slabs.waits_on_device
        self._awaited: list[Awaited] = []
        self._status = self._words(STATUS_WORDS, 0)
        on_gpu = slabs.device.type == "cuda"
        self._host_status = torch.zeros(STATUS_WORDS, dtype=torch.int64, pin_memory=on_gpu)
        # Polls must not queue behind the computations of the current stream.
        self._stream = torch.cuda.Stream(slabs.device) if on_gpu else None
        self._done = torch.cuda.Event() if on_gpu else None

    def posted(self, addresses: Tensor) -> Posted:
        """A place to post to."""
        return Posted(addresses=addresses, generation=self._words(1, 1))

    def awaited(self, flags: Tensor, senders: tuple[int, ...]) -> Awaited:
        """Flags to wait for; flags[i] is set by senders[i]."""
        addresses = flags.data_ptr() + 8 * torch.arange(len(senders))
        made = Awaited(
            flags=flags,
            addresses=addresses.to(self._device),
            generation=self._words(1, 1),
            senders=senders,
        )
        self._awaited.append(made)
        return made

    def warm_up(self, posted: list[Posted]) -> None:
        """Compile and load the kernels: where one waits, nothing may have to be loaded.

        With a status set the kernels neither post nor wait.
        """
        self._status.fill_(1)
        for its in posted:
            self._flags.post(its.addresses, its.generation, self._status)
            its.generation.fill_(1)
        for i, one in enumerate(self._awaited):
            self._flags.wait(one.addresses, one.generation, self._status, i, self._bound)
            one.generation.fill_(1)
        self._status.zero_()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def post(self, posted: Posted) -> None:
        """Say that all that was stored before is there."""
        self._flags.post(posted.addresses, posted.generation, self._status)

    def wait(self, awaited: Awaited, what: str) -> None:
        """All that follows comes after what the senders stored. CommTimeout here or in `settle`."""
        awaited.whats.append(what)
        if self._waits_on_device:
            wait_id = next(i for i, one in enumerate(self._awaited) if one is awaited)
            self._flags.wait(
                awaited.addresses, awaited.generation, self._status, wait_id, self._bound
            )
            return
        wanted = awaited.first + len(awaited.whats) - 1

        def late() -> list[int]:
            seen = enumerate(self._peek(awaited.flags))
            return [awaited.senders[i] for i, value in seen if value < wanted]

        wait_until(lambda: not late(), self._policy, lambda: self._peers.waiting(what, late()))

    def settle(self) -> None:
        """Return when all of the current stream has been done; CommTimeout if a wait gave up."""
        self._host_status.copy_(self._status, non_blocking=True)
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))
            # No time limit of its own: every wait on the stream has one, and the first that gives
            # up ends all others.
            wait_until(self._done.query, WaitPolicy(pulse=self._policy.pulse), _silent)
        wait_id, bits, generation = self._host_status.tolist()
        if wait_id:
            awaited = self._awaited[wait_id - 1]
            late = [awaited.senders[i] for i in late_flags(bits)]
            waiting = self._peers.waiting(awaited.whats[generation - awaited.first], late)
            raise CommTimeout(f"{waiting.text}: no answer in {self._policy.timeout_s:g} s")
        for one in self._awaited:
            one.first += len(one.whats)
            one.whats.clear()

    def _peek(self, flags: Tensor) -> list[int]:
        """What the flags are now, past all that is queued."""
        if self._stream is None:
            return flags.tolist()
        with torch.cuda.stream(self._stream):
            return flags.tolist()

    def _words(self, count: int, value: int) -> Tensor:
        return torch.full((count,), value, dtype=torch.int64, device=self._device)


def _silent() -> Waiting:
    return Waiting("waiting for the own device")
