"""Which kind of exchange a run takes, by predicted cost, and how long it then really takes.

Knows where costs come from; predicting is `planner.exchange_cost`'s, building `comm.make`'s.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.make import CHUNK_BYTES
from janus_hpc.comm.measure import QUICK, measure_costs
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.errors import JanusError, UsageError
from janus_hpc.planner.cost_table import read_table
from janus_hpc.planner.exchange_cost import Choice, Step, choose_exchange
from janus_hpc.topology import Topology

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What `make_exchange` is asked for. `why`: by what rule, None where the user asked for it or
    `make_exchange` decides; `inter_why` the same of `inter`. `predicted_s`: seconds a layer of each
    kind for `num_tokens` tokens of each attention rank; empty where nothing was to be chosen.
    """

    kind: str
    inter: str
    num_tokens: int
    why: str | None = None
    inter_why: str | None = None
    predicted_s: Mapping[str, float] = field(default_factory=dict)


class CostSource:
    """Costs of crossing nodes and where they come from; found out once, when they are first asked for."""

    def __init__(self) -> None:
        self._found: tuple[ExchangeCosts, str] | None = None

    def get(self, setup: EngineSetup) -> tuple[ExchangeCosts, str]:
        """Collective over the world; measures for a second or two where no table was given."""
        if self._found is None:
            self._found = _costs(setup)
        return self._found


def choose_crossing(setup: EngineSetup, source: CostSource) -> Crossing:
    """The same on every rank. Collective over the world; asks for costs where ranks are on several
    nodes. UsageError for a table that does not fit.
    """
    config, topology = setup.config, setup.topology
    if config.replan != "off" and config.exchange == "auto" and len(set(topology.node_ids)) > 1:
        # Where ranks are started on one node and later move to others, nothing is measured in between.
        source.get(setup)
    num_tokens = decode_tokens(setup)
    asked = Crossing(kind=config.exchange, inter=config.inter, num_tokens=num_tokens)
    if topology.same_node(topology.active_ranks) or config.exchange == "host":
        if config.exchange_table is not None and setup.world.world_rank == 0:
            log.warning("the cost table %s is not used: nothing to choose", config.exchange_table)
        return asked
    if config.exchange != "auto" and config.exchange_table is None:
        return asked
    costs, origin = source.get(setup)
    error: UsageError | None = None
    try:
        _check_costs(topology, config.inter, costs, origin)
    except UsageError as problem:
        error = problem
    setup.world.agree(error)
    links = list(costs.links) if config.inter == "auto" else [config.inter]
    choices = {link: _choice(setup, num_tokens, costs, link) for link in links}
    link = min(links, key=lambda its: choices[its].predicted_s[choices[its].kind])
    choice = choices[link]
    # UCX may be missing on a node although the table has it: "auto" then gives way to MPI.
    is_mpi = link == "mpi" and len(links) > 1
    crossing = replace(asked, predicted_s=choice.predicted_s)
    if is_mpi:
        crossing = replace(crossing, inter=link, inter_why=f"its predicted time is less, {origin}")
    if config.exchange == "auto":
        why = f"{choice.why}; costs {origin}"
        crossing = replace(crossing, kind=choice.kind, why=why)
    return crossing


def _choice(setup: EngineSetup, num_tokens: int, costs: ExchangeCosts, link: str) -> Choice:
    step = Step(
        num_tokens=[num_tokens] * len(setup.topology.attention_ranks),
        row_bytes=setup.spec.hidden * setup.dtype.itemsize,
        hidden=setup.spec.hidden,
        chunk_bytes=CHUNK_BYTES,
        top_k=setup.spec.moe.top_k if setup.config.gate == "agate" else None,
    )
    return choose_exchange(setup.topology, step, costs, link)


def _check_costs(topology: Topology, inter: str, costs: ExchangeCosts, origin: str) -> None:
    """UsageError where costs lack what a prediction for this topology needs."""
    again = "measure again with janus-hpc profile --exchange on nodes like these"
    if inter != "auto" and inter not in costs.links:
        known = ", ".join(costs.links)
        raise UsageError(f"costs {origin} have no link {inter!r}, only {known}: {again}")
    active = topology.active_ranks
    shares_node = len({topology.node_ids[rank] for rank in active}) < len(active)
    for name, link in costs.links.items():
        if inter not in ("auto", name):
            continue
        if not link.across:
            raise UsageError(f"costs {origin} of link {name!r} are of one node only: {again}")
        if shares_node and not link.inside:
            missing = "were measured with one rank a node, and this run has more"
            raise UsageError(f"costs {origin} of link {name!r} {missing}: {again}")


def decode_tokens(setup: EngineSetup) -> int:
    """Tokens of a step in which all of an attention rank's sequences decode."""
    return min(setup.config.max_sequences, setup.config.max_step_tokens)


def _costs(setup: EngineSetup) -> tuple[ExchangeCosts, str]:
    """Costs and where they come from: a table that rank 0 reads, or a measurement."""
    world, path = setup.world, setup.config.exchange_table
    error: JanusError | None = None
    costs: ExchangeCosts | None = None
    if path is None:
        try:
            costs = measure_costs(
                world,
                (setup.config.inter,),
                effort=QUICK,
                timeout_s=setup.config.comm_timeout_s,
                ucx_settings=setup.ucx_settings,
            )
        except UsageError as problem:
            error = problem
        world.agree(error)
        assert costs is not None
        return costs, "measured at the start of this run"
    if world.world_rank == 0:
        try:
            costs = read_table(Path(path)).costs
        except JanusError as problem:
            error = problem
    world.agree(error)
    return world.bcast(costs), f"from {path}"
