"""Which replica serves each choice of an expert, in plain torch: every policy, on any device.

The twin of native/balance.h and of balance_triton.py. Knows slots and ranks as numbers only.

Legend: T tokens, J choices a token, E experts, R expert ranks.
"""

import torch
from janus_hpc.kernels.assign import assign, nth_host
from janus_hpc.kernels.slot_map import Balanced, SlotMap
from torch import Tensor


def balance(ids_TJ: Tensor, slot_map: SlotMap, policy: str, draw: int) -> Balanced:
    """See `Ops.balance`. Reads the ids on the host."""
    lists = slot_map.lists
    counts_E = torch.bincount(ids_TJ.flatten(), minlength=lists.num_experts).int()
    if policy == "eplb":
        return _evenly(ids_TJ, slot_map, counts_E)
    active = counts_E.nonzero().flatten().tolist()
    rank_of = assign(policy, active, lists.hosts, lists.primary, lists.num_ranks, draw)
    slot_of_E = torch.full((lists.num_experts,), -1, dtype=torch.int32)
    loads_R = torch.zeros(lists.num_ranks, dtype=torch.int32)
    for expert, expert_rank in rank_of.items():
        slot_of_E[expert] = lists.slot_of_ER[expert * lists.num_ranks + expert_rank]
        loads_R[expert_rank] += 1
    device = ids_TJ.device
    return Balanced(slot_of_E.to(device)[ids_TJ.long()], counts_E, loads_R.to(device))


def _evenly(ids_TJ: Tensor, slot_map: SlotMap, counts_E: Tensor) -> Balanced:
    """EPLB's assumption: an expert's tokens go to its replicas in turn."""
    lists = slot_map.lists
    slots, loads = [], [0] * lists.num_ranks
    seen = [0] * lists.num_experts
    for expert in ids_TJ.flatten().tolist():
        hosts = lists.hosts[expert]
        turn = seen[expert]
        seen[expert] += 1
        expert_rank = nth_host(hosts, turn % hosts.bit_count())
        loads[expert_rank] += turn < hosts.bit_count()
        slots.append(lists.slot_of_ER[expert * lists.num_ranks + expert_rank])
    slots_TJ = torch.tensor(slots, dtype=torch.int32).view(ids_TJ.shape)
    loads_R = torch.tensor(loads, dtype=torch.int32)
    return Balanced(slots_TJ.to(ids_TJ.device), counts_E, loads_R.to(ids_TJ.device))
