"""Which kind of exchange takes the least time between nodes, as predicted from measured costs.

Pure: knows neither MPI nor tensors; computed alike on every rank from the same costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.plan.build import chunks_of
from janus_hpc.comm.plan.fabric import Kind, make_fabric
from janus_hpc.planner.exchange_bound import bound_s
from janus_hpc.planner.exchange_model import LayerModel, RowSizes
from janus_hpc.topology import Topology

# Chunks on their way there, times ranks: more of them are not run on a clock, which would take more
# than a second.
_MOST_WORK = 50_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step sends. num_tokens[a]: tokens of attention role rank a over all microbatches; `top_k`
    only with the gate on the attention side; `chunk_bytes` as for `make_exchange`.
    """

    num_tokens: Sequence[int]
    row_bytes: int
    hidden: int
    chunk_bytes: int
    top_k: int | None = None
    num_microbatches: int = 1


@dataclass(frozen=True)
class Choice:
    """The kind, the predicted seconds a layer of every kind, and the rule in words."""

    kind: str
    predicted_s: Mapping[str, float]
    why: str


def predict_s(topology: Topology, kind: str, step: Step, costs: ExchangeCosts, link: str) -> float:
    """Seconds of dispatch and combine of one layer, layers back to back.

    `kind`: "one-phase", "direct", "relay"; "shm" on one node. `link`: a name in `costs.links`.
    """
    fabric = make_fabric(topology, Kind.DIRECT if kind == "shm" else Kind(kind))
    tokens = dict(zip(topology.attention_ranks, step.num_tokens, strict=True))
    in_order = [tokens[rank] for rank in fabric.attention_ranks]
    sizes = RowSizes(row_bytes=step.row_bytes, hidden=step.hidden, top_k=step.top_k)
    num_parts = step.num_microbatches
    counts = [[(count + m) // num_parts for count in in_order] for m in range(num_parts)]
    chunk_rows = max(1, step.chunk_bytes // step.row_bytes) if step.top_k is None else None
    num_chunks = sum(
        len(fabric.trees[chunk.source])
        for its in counts
        for chunk in chunks_of(fabric, its, chunk_rows)
    )
    if num_chunks * len(fabric.group_of) > _MOST_WORK:
        return bound_s(fabric, in_order, sizes, costs.links[link])
    model = LayerModel(fabric, counts, sizes, costs.links[link], costs.memory, chunk_rows)
    return model.layer_s()


def choose_exchange(topology: Topology, step: Step, costs: ExchangeCosts, link: str) -> Choice:
    """The kind with the smallest predicted time over several nodes; ties to direct."""
    order = (Kind.DIRECT, Kind.RELAY, Kind.ONE_PHASE)
    predicted_s = {str(kind): predict_s(topology, kind, step, costs, link) for kind in order}
    best = min(predicted_s, key=predicted_s.__getitem__)
    times = ", ".join(f"{kind} {seconds * 1e3:.3g} ms" for kind, seconds in predicted_s.items())
    num_tokens = sum(step.num_tokens)
    return Choice(best, predicted_s, f"predicted for {num_tokens} tokens over {link}: {times}")
