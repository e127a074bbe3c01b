"""Flags that processes post to each other and wait for, in memory they share; flags_triton.py does it on a GPU.

What lies behind the flags, and who owns them, is the caller's business. A flag is an aligned int64
word, named by its address in this process; its values only grow. R: flags posted to, F: flags
awaited.
"""

import ctypes
from typing import Protocol

from torch import Tensor

# A wait marks late flags in the bits of one word.
MAX_FLAGS = 64
# What a status holds: 0, or 1 + the id of the wait that gave up; the bits of the flags that were
# late then; the generation they were waited for.
STATUS_WORDS = 3


class Flags(Protocol):
    """Post and wait, alike on CPU and GPU; all tensors int64 and on one device.

    `generation` is one word, first 1, that only the calls themselves count up, so that no call
    needs a value that changes. Once a wait has given up nothing is posted or awaited any more.
    """

    def post(self, addresses_R: Tensor, generation: Tensor, status: Tensor) -> None:
        """Set every flag to the generation, after all that was stored before; then count it up.

        Errors: AssertionError for more than MAX_FLAGS flags.
        """

    def wait(
        self, addresses_F: Tensor, generation: Tensor, status: Tensor, wait_id: int, bound: int
    ) -> None:
        """Wait until every flag has reached the generation; then count it up.

        What was stored before a flag was posted is seen by all that follows. After `bound`
        (nanoseconds on a GPU, polls on a CPU) it gives up and says in `status`, STATUS_WORDS words,
        what was late. Errors: AssertionError for more than MAX_FLAGS flags.
        """


def post(addresses_R: Tensor, generation: Tensor, status: Tensor) -> None:
    """`Flags.post` in plain Python, for one process at a time: its stores are in program order."""
    assert addresses_R.shape[0] <= MAX_FLAGS, f"{addresses_R.shape=}"
    if not status[0]:
        for address in addresses_R.tolist():
            ctypes.c_int64.from_address(address).value = int(generation)
    generation += 1


def wait(addresses_F: Tensor, generation: Tensor, status: Tensor, wait_id: int, bound: int) -> None:
    """`Flags.wait` in plain Python."""
    assert addresses_F.shape[0] <= MAX_FLAGS, f"{addresses_F.shape=}"
    wanted, flags = int(generation), [ctypes.c_int64.from_address(a) for a in addresses_F.tolist()]
    late = [] if status[0] else list(range(len(flags)))
    num_polls = 0
    while late and num_polls <= bound:
        late = [flag for flag in late if flags[flag].value < wanted]
        num_polls += 1
    if late:
        bits = sum(1 << flag for flag in late)
        status[1] = bits - (1 << 64) if bits >> 63 else bits
        status[2] = wanted
        status[0] = wait_id + 1
    generation += 1


def late_flags(bits: int) -> list[int]:
    """The places of the flags that a status' second word marks as late."""
    return [flag for flag in range(MAX_FLAGS) if bits >> flag & 1]
