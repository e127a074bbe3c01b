"""The documented rule behind `--split auto` until measured plans exist.

Pure arithmetic on the model's weights and the number of ranks.
"""

from janus_hpc.models.spec import ModelSpec
from janus_hpc.topology import Split


def default_split(spec: ModelSpec, num_ranks: int) -> tuple[Split, str]:
    """The split for `num_ranks` ranks, and the reason in words.

    One rank is colocated. Otherwise expert ranks are given out in proportion to the routed experts' share of
    the weights, at least one rank for either role, and never more expert ranks than experts.
    """
    if num_ranks == 1:
        return Split(num_colocated=1), "one rank does both"
    expert_params = spec.num_expert_params()
    share = expert_params / (expert_params + spec.num_attention_params())
    num_expert = min(max(round(num_ranks * share), 1), num_ranks - 1, spec.moe.num_experts)
    split = Split(num_attention=num_ranks - num_expert, num_expert=num_expert)
    return split, f"routed experts are {share:.0%} of the weights"
