"""The placement a run begins with: how many slots an expert rank has, and which experts lie in them.

Pure but for reading the trace the user named; decided on world rank 0 and broadcast.
"""

from collections.abc import Sequence
from pathlib import Path

from janus_hpc.config import RunConfig
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.placement import Placement
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import check_fits, read_trace
from janus_hpc.topology import Role

# Spare slots as a part of those that are needed, and the most of a rank's memory that experts may take
# for the sake of spare ones.
SPARE_SHARE = 0.25
EXPERT_MEMORY_SHARE = 0.5


def choose_placement(
    config: RunConfig,
    spec: ModelSpec,
    node_of_rank: Sequence[int],
    room_bytes: int,
    itemsize: int,
    seen: RoutingTrace | None = None,
) -> tuple[Placement, str]:
    """The placement of epoch 0 over the expert ranks, and why they have so many slots.

    node_of_rank: the node of each expert rank; room_bytes: memory of the rank that has least; itemsize:
    bytes of a weight; seen: the routing of the run so far, which counts before a file's. UsageError for
    slots that do not fit, or a trace that does not.
    """
    num_slots, slots_why = choose_slots(config.slots, spec, len(node_of_rank), room_bytes, itemsize)
    trace, origin = seen, "so far"
    if trace is None or not trace.num_tokens_L.all():
        trace = read_fitting_trace(config.placement_from, spec)
        origin = f"in {config.placement_from}"
    kind, why = config.placement, "asked for"
    if kind == "auto":
        kind = "contiguous" if trace is None else "janus"
        why = "no trace was given" if trace is None else "there is a trace"
    if trace is not None:
        why += f", by the routing {origin}"
    return place(kind, spec, num_slots, node_of_rank, trace, why), slots_why


def place(
    kind: str,
    spec: ModelSpec,
    num_slots: int,
    node_of_rank: Sequence[int],
    trace: RoutingTrace | None,
    why: str,
) -> Placement:
    """A placement of this kind by what a trace counted; uniform without one."""
    return make_placement(
        kind,
        num_layers=len(spec.sparse_layers),
        num_experts=spec.moe.num_experts,
        num_ranks=len(node_of_rank),
        num_slots=num_slots,
        counts_LE=None if trace is None else trace.counts_LE,
        coactivation_LEE=None if trace is None else trace.coactivation_LEE,
        node_of_rank=node_of_rank,
        num_groups=spec.moe.num_groups,
        why=why,
    )


def choose_slots(
    asked: int, spec: ModelSpec, num_ranks: int, room_bytes: int, itemsize: int
) -> tuple[int, str]:
    """Slots of an expert rank a layer, and why: as asked, or the fewest and SPARE_SHARE more."""
    if asked:
        return asked, "asked for"
    num_experts = spec.moe.num_experts
    fewest = -(-num_experts // num_ranks)
    wanted = min(num_experts, max(fewest, int(num_experts * (1 + SPARE_SHARE) / num_ranks)))
    slot_bytes = 3 * spec.hidden * spec.moe.width * itemsize * len(spec.sparse_layers)
    affordable = int(room_bytes * EXPERT_MEMORY_SHARE) // max(slot_bytes, 1)
    if wanted == fewest:
        return fewest, "as many as are needed"
    if affordable < wanted:
        most = max(fewest, affordable)
        return most, f"{fewest} are needed, and half of {room_bytes} bytes holds {affordable}"
    return wanted, f"{fewest} are needed, and a quarter more lets replicas even out the load"


def read_fitting_trace(path: str | None, spec: ModelSpec) -> RoutingTrace | None:
    """The trace of a file; None without one. UsageError where it is of another model."""
    if path is None:
        return None
    trace = read_trace(Path(path))
    check_fits(
        trace,
        Path(path),
        num_experts=spec.moe.num_experts,
        top_k=spec.moe.top_k,
        layer_ids=spec.sparse_layers,
    )
    return trace


def expert_nodes(node_ids: Sequence[int], roles: Sequence[Role]) -> list[int]:
    """The node of each expert rank under these roles."""
    return [node for node, role in zip(node_ids, roles, strict=True) if role.does_experts]
