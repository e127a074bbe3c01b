"""Which kind of exchange takes the least time between nodes, as predicted from measured costs.

Pure: knows neither MPI nor tensors; computed alike on every rank from the same costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.plan.fabric import Kind, make_fabric
from janus_hpc.planner.exchange_model import LayerModel, RowSizes
from janus_hpc.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step sends. num_tokens[a]: tokens of attention role rank a; `top_k` only with the gate
    on the attention side; `chunk_bytes` as for `make_exchange`.
    """

    num_tokens: Sequence[int]
    row_bytes: int
    hidden: int
    chunk_bytes: int
    top_k: int | None = None


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
    chunk_rows = max(1, step.chunk_bytes // step.row_bytes) if step.top_k is None else None
    model = LayerModel(
        fabric,
        [tokens[rank] for rank in fabric.attention_ranks],
        RowSizes(row_bytes=step.row_bytes, hidden=step.hidden, top_k=step.top_k),
        costs.links[link],
        costs.memory,
        chunk_rows,
    )
    return model.layer_s()


def choose_exchange(topology: Topology, step: Step, costs: ExchangeCosts, link: str) -> Choice:
    """The kind with the smallest predicted time over several nodes; ties to direct."""
    order = (Kind.DIRECT, Kind.RELAY, Kind.ONE_PHASE)
    predicted_s = {str(kind): predict_s(topology, kind, step, costs, link) for kind in order}
    best = min(predicted_s, key=predicted_s.__getitem__)
    times = ", ".join(f"{kind} {seconds * 1e3:.3g} ms" for kind, seconds in predicted_s.items())
    num_tokens = sum(step.num_tokens)
    return Choice(best, predicted_s, f"predicted for {num_tokens} tokens over {link}: {times}")
