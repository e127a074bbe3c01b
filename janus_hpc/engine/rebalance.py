"""Whether experts should lie elsewhere in the next batch: decided on world rank 0 from the routing so far.

Knows routing, placements and what they cost in activated experts; moves nothing.
"""

import numpy as np

from janus_hpc.config import RunConfig
from janus_hpc.engine.decision import BorderDecision
from janus_hpc.engine.placing import place
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.moves import aligned
from janus_hpc.placement.placement import Placement
from janus_hpc.planner.a_max import layer_a_max
from janus_hpc.routing.trace import RoutingTrace

# A new placement is taken where the predicted a_max falls by at least this part: moving experts costs time,
# and routing changes from batch to batch.
MIN_GAIN = 0.02
MAX_LAYERS = 8


def decide(
    config: RunConfig,
    spec: ModelSpec,
    current: Placement,
    node_of_rank: list[int],
    trace: RoutingTrace | None,
    tokens_per_pass: float,
    library: BalanceLibrary | None,
) -> BorderDecision:
    """The next batch's placement, its slots in the order of the current one's where experts stay."""
    if config.rebalance == "off":
        return BorderDecision(why="--rebalance off")
    if current.num_ranks == 1:
        return BorderDecision(why="one expert rank holds all experts")
    if trace is None or not trace.num_tokens_L.all():
        return BorderDecision(why="no routing was recorded")
    kind = "janus" if config.placement == "auto" else config.placement
    found = place(kind, spec, current.num_slots, node_of_rank, trace, "by the routing so far")
    new = aligned(found, current).with_epoch(current.epoch + 1)
    if new.digest == current.digest:
        return BorderDecision(why=f"{kind} places them the same way")
    batch = max(round(tokens_per_pass), 1)
    before, after = (
        _predicted(trace, its, batch, config.balance, library) for its in (current, new)
    )
    gain = 1.0 - after / before
    why = f"a_max {before:.2f} -> {after:.2f} predicted at {batch} tokens a pass"
    if config.rebalance == "auto" and gain < MIN_GAIN:
        return BorderDecision(why=f"{why}: less than {MIN_GAIN:.0%}")
    return BorderDecision(why=why, placement=new)


def _predicted(
    trace: RoutingTrace,
    placement: Placement,
    batch: int,
    policy: str,
    library: BalanceLibrary | None,
) -> float:
    """Mean a_max over at most MAX_LAYERS layers, evenly spaced."""
    step = -(-placement.num_layers // MAX_LAYERS)
    means = [
        layer_a_max(trace, placement, index, [batch], policy, library)[0].mean
        for index in range(0, placement.num_layers, step)
    ]
    return float(np.mean(means))
