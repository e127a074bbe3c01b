"""How long dispatch and combine take at least: the busiest node's link and the busiest rank's messages.

For clusters too large to run their plans on a clock. Pure; the bytes follow from the fabric's trees.
"""

from collections import defaultdict
from collections.abc import Sequence

from janus_hpc.comm.costs import LinkCosts
from janus_hpc.comm.plan.fabric import Fabric, preorder
from janus_hpc.planner.exchange_bytes import ROUTED_META_BYTES
from janus_hpc.planner.exchange_model import RowSizes


def bound_s(fabric: Fabric, counts: Sequence[int], sizes: RowSizes, link: LinkCosts) -> float:
    """Seconds of a layer; counts[a]: tokens of fabric.attention_ranks[a]. All sums as float64."""
    tokens = dict(zip(fabric.attention_ranks, counts, strict=True))
    there: defaultdict[tuple[str, int], float] = defaultdict(float)
    back: defaultdict[tuple[str, int], float] = defaultdict(float)
    messages: defaultdict[int, int] = defaultdict(int)
    num_experts = len(fabric.expert_ranks)
    for source, tree in fabric.trees.items():
        num_rows = sum(tokens[rank] for rank in fabric.groups[source].attention)
        for parent, children in tree.items():
            for child in children:
                width = float(sizes.row_bytes)
                if sizes.top_k is not None:
                    below = preorder(tree, child)
                    experts = sum(len(fabric.groups[group].experts) for group in below)
                    width = (width + ROUTED_META_BYTES) * sizes.top_k * experts / num_experts
                messages[parent] += 1
                messages[child] += 1
                here, away = fabric.groups[parent].node_id, fabric.groups[child].node_id
                if here != away:
                    there["out", here] += num_rows * width
                    there["in", away] += num_rows * width
                    back["out", away] += num_rows * sizes.hidden * 8
                    back["in", here] += num_rows * sizes.hidden * 8
    busiest = max(
        (n / len(fabric.groups[group].members) for group, n in messages.items()), default=0
    )
    moved = max(there.values(), default=0.0) + max(back.values(), default=0.0)
    # Each message goes there and comes back, half of its cost on this rank.
    return busiest * link.across_busy_s + (moved / link.node_rate if moved else 0.0)
