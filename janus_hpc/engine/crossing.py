"""Which kind of exchange a run takes, by predicted cost, and how long it then really takes.

Knows where costs come from; predicting is `planner.exchange_cost`'s, building `comm.make`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.make import CHUNK_BYTES
from janus_hpc.comm.measure import QUICK, measure_costs
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.errors import JanusError, UsageError
from janus_hpc.planner.cost_table import read_table
from janus_hpc.planner.exchange_cost import Step, choose_exchange


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What `make_exchange` is asked for. `why`: by what rule, None where the user asked for it or
    `make_exchange` decides. `predicted_s`: seconds a layer of each kind for `num_tokens` tokens of
    each attention rank; empty where nothing was to be chosen.
    """

    kind: str
    inter: str
    num_tokens: int
    why: str | None = None
    predicted_s: Mapping[str, float] = field(default_factory=dict)


def choose_crossing(setup: EngineSetup) -> Crossing:
    """The same on every rank. Collective over the world; measures for a second or two where ranks
    are on several nodes and no table was given. UsageError for a table that does not fit.
    """
    config, topology = setup.config, setup.topology
    num_tokens = decode_tokens(setup)
    asked = Crossing(kind=config.exchange, inter=config.inter, num_tokens=num_tokens)
    if topology.same_node(topology.active_ranks) or config.exchange == "host":
        return asked
    if config.exchange != "auto" and config.exchange_table is None:
        return asked
    costs, origin = _costs(setup)
    links = list(costs.links) if config.inter == "auto" else [config.inter]
    if missing := [link for link in links if link not in costs.links]:
        raise UsageError(
            f"{origin} has no costs of link {missing[0]!r}, only of {', '.join(costs.links)}: "
            "measure again with janus-hpc profile --exchange, or take another --inter"
        )
    step = Step(
        num_tokens=[num_tokens] * len(topology.attention_ranks),
        row_bytes=setup.spec.hidden * setup.dtype.itemsize,
        hidden=setup.spec.hidden,
        chunk_bytes=CHUNK_BYTES,
        top_k=setup.spec.moe.top_k if config.gate == "agate" else None,
    )
    choices = {link: choose_exchange(topology, step, costs, link) for link in links}
    link = min(links, key=lambda its: choices[its].predicted_s[choices[its].kind])
    choice = choices[link]
    inter = link if len(links) > 1 else config.inter
    if config.exchange != "auto":
        return Crossing(
            kind=config.exchange,
            inter=inter,
            num_tokens=num_tokens,
            predicted_s=choice.predicted_s,
        )
    return Crossing(
        kind=choice.kind,
        inter=inter,
        num_tokens=num_tokens,
        why=f"{choice.why}; costs {origin}",
        predicted_s=choice.predicted_s,
    )


def decode_tokens(setup: EngineSetup) -> int:
    """Tokens of a step in which all of an attention rank's sequences decode."""
    return min(setup.config.max_sequences, setup.config.max_step_tokens)


def _costs(setup: EngineSetup) -> tuple[ExchangeCosts, str]:
    """Costs and where they come from: a table that rank 0 reads, or a measurement."""
    world, path = setup.world, setup.config.exchange_table
    if path is None:
        costs = measure_costs(
            world, (setup.config.inter,), effort=QUICK, timeout_s=setup.config.comm_timeout_s
        )
        return costs, "measured at the start of this run"
    error: JanusError | None = None
    table = None
    if world.world_rank == 0:
        try:
            table = read_table(Path(path))
        except JanusError as problem:
            error = problem
    world.agree(error)
    return world.bcast(None if table is None else table.costs), f"from {path}"
