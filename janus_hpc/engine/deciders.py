"""Who decides between two batches how to go on: world rank 0 asks one of these.

A decider knows the run so far and the options; it changes nothing itself.
"""

from collections.abc import Sequence
from typing import Protocol

from janus_hpc.config import RunConfig
from janus_hpc.engine.account import Account
from janus_hpc.engine.decision import BorderDecision, Standing
from janus_hpc.engine.placing import choose_placement, expert_nodes
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.rebalance import decide
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.models.spec import ModelSpec


class Decider(Protocol):
    """Asked at every border, on world rank 0 alone."""

    def decide(self, account: Account, now: Standing) -> BorderDecision:
        """How the coming batch runs; JanusError ends the run on all ranks."""
        ...


class Rebalancing:
    """The split stays, and experts move where that pays."""

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        node_ids: Sequence[int],
        library: BalanceLibrary | None,
    ) -> None:
        self._config = config
        self._spec = spec
        self._node_ids = node_ids
        self._library = library

    def decide(self, account: Account, now: Standing) -> BorderDecision:
        return decide(
            self._config,
            self._spec,
            now.placement,
            expert_nodes(self._node_ids, now.assignment.roles),
            account.trace,
            account.tokens_per_pass,
            self._library,
        )


class SplitsInTurn:
    """The splits of `--replan` one after the other; where two in a row are the same, experts may move."""

    def __init__(
        self, plan: RunPlan, node_ids: Sequence[int], itemsize: int, otherwise: Decider
    ) -> None:
        self._plan = plan
        self._node_ids = node_ids
        self._itemsize = itemsize
        self._otherwise = otherwise

    def decide(self, account: Account, now: Standing) -> BorderDecision:
        turns = self._plan.turns
        entry = now.number % len(turns)
        if turns[entry] == now.assignment:
            return self._otherwise.decide(account, now)
        placement, _ = choose_placement(
            self._plan.config,
            self._plan.spec,
            expert_nodes(self._node_ids, turns[entry].roles),
            self._plan.room_bytes,
            self._itemsize,
            None if self._plan.config.rebalance == "off" else account.trace,
        )
        return BorderDecision(why=turns[entry].why, assignment=turns[entry], placement=placement)


def make_decider(
    plan: RunPlan, node_ids: Sequence[int], itemsize: int, library: BalanceLibrary | None
) -> Decider:
    """The decider of a run. `itemsize`: bytes of a weight; `library`: policies in C, where there are."""
    rebalancing = Rebalancing(plan.config, plan.spec, node_ids, library)
    if plan.turns:
        return SplitsInTurn(plan, node_ids, itemsize, rebalancing)
    return rebalancing
