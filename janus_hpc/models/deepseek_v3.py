"""The DeepSeek-V3 family (V3, R1, and what is built alike): DeepSeek-V2's layers, experts chosen by sigmoid scores.

Only names and shapes; the layers are shared.
"""

from dataclasses import replace

from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.deepseek_v2 import latent_spec
from janus_hpc.models.spec import ModelSpec, MoeSpec

ARCHITECTURE = "DeepseekV3ForCausalLM"


def spec(config: ConfigFile) -> ModelSpec:
    """Shapes from config.json. Errors: ModelError naming the key."""
    config.expect("scoring_func", "sigmoid", ("sigmoid",))
    config.expect("topk_method", "noaux_tc", ("noaux_tc",))
    config.expect("rope_interleave", True, (True,))
    shapes = latent_spec(config, ARCHITECTURE, _moe(config))
    return replace(shapes, num_extra_layers=config.get("num_nextn_predict_layers", int, 0))


def _moe(config: ConfigFile) -> MoeSpec:
    width = config.positive("moe_intermediate_size")
    num_experts = config.positive("n_routed_experts")
    top_k = config.positive("num_experts_per_tok")
    num_groups, topk_groups = config.positive("n_group"), config.positive("topk_group")
    # A group is judged by its two best experts.
    if num_experts % num_groups or num_experts < 2 * num_groups:
        raise config.error("n_group", f"groups of at least 2 of n_routed_experts = {num_experts}")
    if topk_groups * (num_experts // num_groups) < top_k:
        raise config.error("topk_group", f"groups that hold num_experts_per_tok = {top_k} experts")
    return MoeSpec(
        num_experts=num_experts,
        top_k=top_k,
        width=width,
        renormalize=config.get("norm_topk_prob", bool, True),
        scale=config.get("routed_scaling_factor", float),
        num_groups=num_groups,
        topk_groups=topk_groups,
        shared_width=width * (config.get("n_shared_experts", int, 0) or 0),
        scoring="sigmoid",
        score_bias=True,
    )
