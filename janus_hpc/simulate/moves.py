"""What a change from one plan to the next costs: weights that ranks must load, and for how long they do not serve."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from janus_hpc.placement.make import make_placement
from janus_hpc.planner.profile_data import Profile
from janus_hpc.simulate.capacity import Plan

Source = Literal["ranks", "checkpoint", "none"]


@dataclass(frozen=True, kw_only=True)
class MoveCost:
    """Ranks that load weights, their bytes, and the sum over them of seconds in which they do not serve."""

    num_ranks: int = 0
    num_bytes: float = 0.0
    rank_seconds: float = 0.0


def move_cost(profile: Profile, old: Plan, new: Plan, source: Source) -> MoveCost:
    """Ranks keep their role and pod where they can. Weights come from ranks that hold them, or from the
    checkpoint, which the ranks of a node read together; besides, every such rank takes `join_s`.
    """
    if source == "none":
        return MoveCost()
    model, loading = profile.model, profile.loading
    rate = loading.link_rate
    if source == "checkpoint":
        rate = loading.checkpoint_rate / profile.hardware.ranks_per_node
    loads = _expert_loads(model.num_experts, old, new)
    slot_bytes = model.num_sparse_layers * float(model.expert_bytes)
    added = max(new.pods * new.num_attention - old.pods * old.num_attention, 0)
    # Bytes of a loading rank, and how many such ranks there are.
    moved = [(slots * slot_bytes, count) for slots, count in loads if slots]
    if added:
        moved.append((float(model.attention_bytes), added))
    return MoveCost(
        num_ranks=sum(count for _, count in moved),
        num_bytes=sum(count * size for size, count in moved),
        rank_seconds=sum(count * (size / rate + loading.join_s) for size, count in moved),
    )


def _expert_loads(num_experts: int, old: Plan, new: Plan) -> list[tuple[int, int]]:
    """Slots of a layer that a rank must load, and how many ranks do so."""
    kept_pods = min(old.pods, new.pods)
    fresh = [(new.num_slots, (new.pods - kept_pods) * new.num_expert)]
    shapes = (old.num_expert, old.num_slots), (new.num_expert, new.num_slots)
    if shapes[0] == shapes[1]:
        return fresh
    changed = [(slots, kept_pods) for slots in _new_slots(num_experts, *shapes)]
    return changed + fresh


@cache
def _new_slots(num_experts: int, old: tuple[int, int], new: tuple[int, int]) -> tuple[int, ...]:
    """Of each new expert rank, the slots of a layer that it did not hold, with contiguous placements."""
    before, after = _held(num_experts, *old), _held(num_experts, *new)
    return tuple(
        len(experts - (before[i] if i < len(before) else set())) for i, experts in enumerate(after)
    )


@cache
def _held(num_experts: int, num_ranks: int, num_slots: int) -> list[set[int]]:
    placement = make_placement(
        "contiguous",
        num_layers=1,
        num_experts=num_experts,
        num_ranks=num_ranks,
        num_slots=num_slots,
    )
    return [set(experts) for experts in placement.slots_LRC[0].tolist()]
