"""Flags posted and awaited on a GPU, in memory of any GPU it reaches; flags.py says what they mean.

Importing it needs triton. Each kernel is one block of one warp: a waiting one takes one slot of one
multiprocessor, and all decisions of a warp are its own.
"""

import torch
import triton
import triton.language as tl
from janus_hpc.kernels.flags import MAX_FLAGS
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _now(lane, TIMED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Nanoseconds, the same in all threads; 0 where there is no clock."""
    if TIMED:
        # With an operand the result is a value a thread, and the maximum one of the whole warp: no
        # thread leaves a loop before the others.
        clock = tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l,r", [lane], dtype=tl.int64, is_pure=False, pack=1
        )
        now = tl.max(clock, axis=0)
    else:
        now = tl.full((), 0, tl.int64)
    return now


@triton.jit(do_not_specialize=["num_receivers"])  # type: ignore[untyped-decorator]
def post_kernel(  # type: ignore[no-untyped-def]
    addresses_ptr, generation_ptr, status_ptr, num_receivers, BLOCK: tl.constexpr
):
    """One block: release-store the generation to every flag, then count it up."""
    lane = tl.arange(0, BLOCK)
    generation = tl.load(generation_ptr)
    num_posted = tl.where(tl.load(status_ptr) == 0, num_receivers, 0)
    address = tl.load(addresses_ptr + lane, mask=lane < num_receivers, other=0)
    # Every thread has read the generation before one counts it up.
    tl.debug_barrier()
    flag_ptr = address.to(tl.pointer_type(tl.int64))
    value = tl.zeros((BLOCK,), tl.int64) + generation
    tl.atomic_xchg(flag_ptr, value, mask=lane < num_posted, sem="release", scope="sys")
    tl.store(generation_ptr, generation + 1)


@triton.jit(do_not_specialize=["num_flags", "wait_id", "bound"])  # type: ignore[untyped-decorator]
def wait_kernel(  # type: ignore[no-untyped-def]
    addresses_ptr,
    generation_ptr,
    status_ptr,
    num_flags,
    wait_id,
    bound,
    TIMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block: poll the flags that are late until none is, or `bound` has passed."""
    lane = tl.arange(0, BLOCK)
    generation = tl.load(generation_ptr)
    late = lane < tl.where(tl.load(status_ptr) == 0, num_flags, 0)
    address = tl.load(addresses_ptr + lane, mask=lane < num_flags, other=0)
    flag_ptr = address.to(tl.pointer_type(tl.int64))
    nothing = tl.zeros((BLOCK,), tl.int64)
    num_late = tl.sum(late.to(tl.int32), axis=0)
    begun = _now(lane, TIMED)
    spent = begun - begun
    # What any thread has acquired holds for all that follows, and nothing begins before.
    tl.debug_barrier()
    while (num_late > 0) & (spent <= bound):
        seen = tl.atomic_add(flag_ptr, nothing, mask=late, sem="acquire", scope="sys")
        late = late & (seen < generation)
        num_late = tl.sum(late.to(tl.int32), axis=0)
        if TIMED:
            spent = _now(lane, TIMED) - begun
        else:
            spent += 1
    tl.debug_barrier()
    gave_up = num_late > 0
    bits = tl.sum((late.to(tl.int64) << lane.to(tl.int64)), axis=0)
    tl.store(status_ptr + 1, bits, mask=gave_up)
    tl.store(status_ptr + 2, generation, mask=gave_up)
    tl.store(status_ptr, wait_id + 1, mask=gave_up)
    tl.store(generation_ptr, generation + 1)


def post(addresses_R: Tensor, generation: Tensor, status: Tensor) -> None:
    """See `Flags.post`."""
    num_receivers = addresses_R.shape[0]
    assert num_receivers <= MAX_FLAGS, f"{num_receivers=}"
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(addresses_R):
        post_kernel[(1,)](
            addresses_R, generation, status, num_receivers, BLOCK=MAX_FLAGS, num_warps=1
        )


def wait(addresses_F: Tensor, generation: Tensor, status: Tensor, wait_id: int, bound: int) -> None:
    """See `Flags.wait`."""
    num_flags = addresses_F.shape[0]
    assert num_flags <= MAX_FLAGS, f"{num_flags=}"
    with torch.cuda.device_of(addresses_F):
        wait_kernel[(1,)](
            addresses_F,
            generation,
            status,
            num_flags,
            wait_id,
            bound,
            TIMED=addresses_F.is_cuda,
            BLOCK=MAX_FLAGS,
            num_warps=1,
        )
