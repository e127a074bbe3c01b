"""AEBS as one Triton kernel: top-k ids and the slot map in, the slot of every choice out, all on the device.

assign.py says what is computed and why; this comes to the same choices. One block does it all, since the
assignment is serial: fixed shapes, no host synchronisation, safe in a CUDA graph. Importing it needs triton.

Legend: E experts, R ranks, W words of a rank set; BLOCK_* the next powers of two.
"""

import torch
import triton
import triton.language as tl
from janus_hpc.kernels.slot_map import Balanced, SlotMap
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _either(a, b):  # type: ignore[no-untyped-def]
    return a | b


@triton.jit  # type: ignore[untyped-decorator]
def _bits(on_R, rank_R, word_W):  # type: ignore[no-untyped-def]
    """The words of the set of ranks that are on."""
    here_RW = on_R[:, None] & ((rank_R[:, None] // 64) == word_W[None, :])
    bit_RW = tl.where(here_RW, tl.full((), 1, tl.int64) << (rank_R % 64)[:, None].to(tl.int64), 0)
    return tl.reduce(bit_RW, axis=0, combine_fn=_either)


@triton.jit  # type: ignore[untyped-decorator]
def _has(set_W, rank_R, word_W):  # type: ignore[no-untyped-def]
    """Whether each rank is in the set."""
    mine_RW = (rank_R[:, None] // 64) == word_W[None, :]
    bit_RW = (set_W[None, :] >> (rank_R % 64)[:, None].to(tl.int64)) & 1
    return tl.max(tl.where(mine_RW, bit_RW, 0), axis=1) == 1


@triton.jit  # type: ignore[untyped-decorator]
def _meets(hosts_EW, set_W):  # type: ignore[no-untyped-def]
    """Whether each expert has a host in the set."""
    both_EW = (hosts_EW & set_W[None, :]) != 0
    return tl.max(both_EW.to(tl.int32), axis=1) == 1


@triton.jit  # type: ignore[untyped-decorator]
def _assign(  # type: ignore[no-untyped-def]
    active_E,
    rank_of_E,
    hosts_EW,
    num_ranks,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    W: tl.constexpr,
):
    """`assign.assign_balanced`: where each expert goes, and the loads."""
    expert_E = tl.arange(0, BLOCK_E)
    rank_R = tl.arange(0, BLOCK_R)
    word_W = tl.arange(0, W)
    inside_R = rank_R < num_ranks
    on_rank_ER = active_E[:, None] & (rank_of_E[:, None] == rank_R[None, :])
    load_R = tl.sum(on_rank_ER.to(tl.int32), axis=0)
    bound = tl.cdiv(tl.sum(active_E.to(tl.int32), axis=0), num_ranks)
    while tl.max(load_R, axis=0) > bound:
        over_R = load_R > bound
        # Levels: ranks below the bound, ranks one move away from them, and so on.
        level_R = tl.where(inside_R & (load_R < bound), 0, BLOCK_R + 1)
        reached_W = _bits(level_R == 0, rank_R, word_W)
        depth = 0
        num_new = tl.sum((level_R == 0).to(tl.int32), axis=0)
        num_found = 0
        while (num_found == 0) & (num_new > 0):
            depth += 1
            able_E = active_E & _meets(hosts_EW, reached_W)
            here_EW = able_E[:, None] & ((rank_of_E[:, None] // 64) == word_W[None, :])
            bit_E = tl.full((), 1, tl.int64) << (rank_of_E % 64).to(tl.int64)
            seen_W = tl.reduce(tl.where(here_EW, bit_E[:, None], 0), axis=0, combine_fn=_either)
            new_R = _has(seen_W & ~reached_W, rank_R, word_W)
            level_R = tl.where(new_R, depth, level_R)
            reached_W = reached_W | seen_W
            num_new = tl.sum(new_R.to(tl.int32), axis=0)
            num_found = tl.sum((new_R & over_R).to(tl.int32), axis=0)
        if num_found == 0:
            bound += 1
        else:
            at = tl.min(tl.where(over_R & (level_R == depth), rank_R, BLOCK_R), axis=0)
            load_R -= (rank_R == at).to(tl.int32)
            while depth > 0:
                below_R = level_R == depth - 1
                able_E = (
                    active_E & (rank_of_E == at) & _meets(hosts_EW, _bits(below_R, rank_R, word_W))
                )
                moved = tl.min(tl.where(able_E, expert_E, BLOCK_E), axis=0)
                mine_EW = (expert_E == moved)[:, None] & (word_W[None, :] >= 0)
                hosts_W = tl.reduce(tl.where(mine_EW, hosts_EW, 0), axis=0, combine_fn=_either)
                can_R = below_R & _has(hosts_W, rank_R, word_W)
                at = tl.min(tl.where(can_R, rank_R, BLOCK_R), axis=0)
                rank_of_E = tl.where(expert_E == moved, at, rank_of_E)
                depth -= 1
            load_R += (rank_R == at).to(tl.int32)
    return rank_of_E, load_R


@triton.jit(do_not_specialize=["num_choices"])  # type: ignore[untyped-decorator]
def balance_kernel(  # type: ignore[no-untyped-def]
    ids_ptr,
    num_choices,
    slot_of_ptr,
    hosts_ptr,
    primary_ptr,
    num_experts,
    num_ranks,
    slots_ptr,
    counts_ptr,
    loads_ptr,
    table_ptr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    W: tl.constexpr,
):
    """One block. table: room for [E] int32."""
    expert_E = tl.arange(0, BLOCK_E)
    inside_E = expert_E < num_experts
    choice = tl.arange(0, BLOCK)
    count_E = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_choices, BLOCK):
        mask = start + choice < num_choices
        ids = tl.load(ids_ptr + start + choice, mask=mask, other=0)
        count_E += tl.histogram(ids, BLOCK_E, mask=mask)
    active_E = inside_E & (count_E > 0)
    hosts_EW = tl.load(
        hosts_ptr + expert_E[:, None] * W + tl.arange(0, W)[None, :],
        mask=inside_E[:, None] & (tl.arange(0, W)[None, :] >= 0),
        other=0,
    )
    primary_E = tl.load(primary_ptr + expert_E, mask=inside_E, other=0)
    rank_of_E, load_R = _assign(active_E, primary_E, hosts_EW, num_ranks, BLOCK_E, BLOCK_R, W)
    slot_E = tl.load(slot_of_ptr + expert_E * num_ranks + rank_of_E, mask=active_E, other=-1)
    rank_R = tl.arange(0, BLOCK_R)
    tl.store(loads_ptr + rank_R, load_R, mask=rank_R < num_ranks)
    tl.store(counts_ptr + expert_E, count_E, mask=inside_E)
    tl.store(table_ptr + expert_E, slot_E, mask=inside_E)
    # The whole table is written before any thread reads it.
    tl.debug_barrier()
    for start in range(0, num_choices, BLOCK):
        mask = start + choice < num_choices
        ids = tl.load(ids_ptr + start + choice, mask=mask, other=0)
        tl.store(slots_ptr + start + choice, tl.load(table_ptr + ids, mask=mask), mask=mask)


def balance_aebs(ids_TJ: Tensor, slot_map: SlotMap) -> Balanced:
    """See `Ops.balance`, policy aebs."""
    assert ids_TJ.is_contiguous() and ids_TJ.dtype == torch.int32
    lists = slot_map.lists
    sizes = (lists.num_experts, lists.num_ranks, lists.num_experts)
    words = torch.empty(sum(sizes), dtype=torch.int32, device=ids_TJ.device)
    counts_E, loads_R, table_E = words.split(sizes)
    slots_TJ = torch.empty_like(ids_TJ)
    # Triton launches on the current device, which need not be that of the tensor.
    with torch.cuda.device_of(ids_TJ):
        balance_kernel[(1,)](
            ids_TJ,
            ids_TJ.numel(),
            slot_map.slot_of_ER,
            slot_map.hosts_EW,
            slot_map.primary_E,
            lists.num_experts,
            lists.num_ranks,
            slots_TJ,
            counts_E,
            loads_R,
            table_E,
            BLOCK=max(256, min(4096, triton.next_power_of_2(ids_TJ.numel()))),
            BLOCK_E=triton.next_power_of_2(lists.num_experts),
            BLOCK_R=triton.next_power_of_2(lists.num_ranks),
            W=lists.num_words,
            num_warps=4,
        )
    return Balanced(slots_TJ, counts_E, loads_R)
