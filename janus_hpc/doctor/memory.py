"""Check `memory`: room for the model's weights on the ranks that are there."""

from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, size, warning
from janus_hpc.errors import ModelError

# What a run takes beside weights (cache, buffers, Python itself), at least, as a share of them.
_SPARE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """`room_bytes`: this rank's share of what is free where its tensors will live (`kind`: cpu, cuda).

    `attention_bytes` and `expert_bytes`: of the model's weights in the dtype they are computed in.
    """

    kind: str
    room_bytes: int
    attention_bytes: int
    expert_bytes: int


def gather(context: Context) -> MemoryFacts:
    """Asks the kernel, the control group (Slurm's --mem) or the GPU."""
    from janus_hpc.engine.device import choose_device_kind, room_bytes
    from janus_hpc.models.registry import load_spec
    from janus_hpc.models.spec import DTYPE_BYTES

    places, rank, target = context.places, context.world_rank, context.target
    try:
        spec = load_spec(target.model_dir)
    except ModelError as problem:
        raise Skip(f"the model's size is not known ({problem})") from problem
    dtype = spec.stored_dtype if target.dtype == "auto" else target.dtype
    itemsize = DTYPE_BYTES.get(dtype, 2)
    kind = choose_device_kind(target.device)
    num_local = places.node_ids.count(places.node_ids[rank])
    return MemoryFacts(
        kind=kind,
        room_bytes=room_bytes(kind, places.local_ranks[rank], num_local),
        attention_bytes=spec.num_attention_params() * itemsize,
        expert_bytes=spec.num_expert_params() * itemsize,
    )


def judge(facts: Sequence[MemoryFacts], context: Context) -> list[Finding]:
    """Pure."""
    first, total = facts[0], sum(its.room_bytes for its in facts)
    needed = first.attention_bytes + first.expert_bytes
    where = "GPU memory" if first.kind == "cuda" else "memory"
    what = f"weights take {size(needed)}, all ranks together have {size(total)} of {where} free"
    fix = "start on more nodes or GPUs, raise Slurm's --mem (0 takes all of a node), or take a smaller dtype"
    if total < needed:
        why = "the run ends while it loads, or is killed by the kernel"
        return [error(what, why=why, fix=fix)]
    if total < needed * (1 + _SPARE_SHARE):
        why = "little is left for the KV cache, which decides how many rows run at once"
        return [warning(what, why=why, fix=fix)]
    largest = max(its.room_bytes for its in facts)
    if first.kind == "cuda" and largest < first.attention_bytes:
        return [
            error(
                f"the attention weights take {size(first.attention_bytes)}, the largest rank has {size(largest)}",
                why="an attention rank holds all of them",
                fix="take GPUs with more memory, or a smaller dtype",
            )
        ]
    return [fine(what)]


CHECK = Check(name="memory", gather=gather, judge=judge)
