"""Profiles of any model on GPUs one does not have, from shipped hardware files and the model's sizes.

Nothing here was measured on this package's kernels: a profile says what its figures rest on.
"""

from math import prod

from janus_hpc.errors import UsageError
from janus_hpc.models.spec import MlaSpec, ModelSpec
from janus_hpc.planner.hardware_files import HardwareFile, names, read_hardware
from janus_hpc.planner.plan_shapes import DTYPE, ITEM_BYTES, plan_spec
from janus_hpc.planner.profile_data import (
    AttentionCosts,
    ExchangeCoefs,
    ExpertCosts,
    Hardware,
    LayerCosts,
    LoadRates,
    ModelShape,
    Profile,
    shape_of,
)
from janus_hpc.planner.profile_file import FORMAT, VERSION
from janus_hpc.planner.system import PART_BYTES

__all__ = ["hardware_profile", "names", "profile_for"]

# Exchanges were timed on so many ranks, and are two rounds.
_LINK_RANKS, _ROUNDS = 8, 2


def hardware_profile(
    name: str, shape_name: str, *, balances: bool = True, part_bytes: int = PART_BYTES
) -> Profile:
    """Of a named shape (`plan_shapes`) in bfloat16; the rest as in `profile_for`.

    Errors: UsageError listing known hardware or shapes.
    """
    spec = plan_spec(shape_name)
    return profile_for(
        name, spec, DTYPE, ITEM_BYTES, shape_name, balances=balances, part_bytes=part_bytes
    )


def profile_for(
    hardware_name: str,
    spec: ModelSpec,
    dtype: str,
    itemsize: int,
    name: str,
    *,
    balances: bool = True,
    part_bytes: int = PART_BYTES,
) -> Profile:
    """Of any model. `balances`: expert ranks decide in every layer which replicas serve it; `part_bytes`: of a value
    on its way back, float64 in this package.

    Errors: UsageError for unknown hardware, and for weights of other than 2 bytes: matrix units have other rates there.
    """
    hardware = read_hardware(hardware_name)
    if itemsize != ITEM_BYTES:
        raise UsageError(
            f"shipped hardware profiles are for weights in bfloat16 or float16, and {name!r} is in {dtype}: give "
            "--dtype bfloat16, or a profile that was measured"
        )
    model = shape_of(spec, dtype, itemsize, name)
    return Profile(
        format=FORMAT,
        version=VERSION,
        made=f"from the hardware file {hardware.name} and the sizes of {name}",
        basis=hardware.basis,
        sources=hardware.sources,
        hardware=Hardware(
            name=hardware.name,
            device="cuda",
            memory_bytes=hardware.memory_bytes,
            ranks_per_node=hardware.ranks_per_node,
            price=hardware.price,
        ),
        model=model,
        kernels="as in the sources",
        attention=(_attention(hardware, spec, itemsize),),
        experts=(_experts(hardware, spec, model, balances),),
        exchange=_exchange(hardware, model, part_bytes),
        loading=LoadRates(
            checkpoint_rate=hardware.node_read_rate,
            link_rate=hardware.rank_load_rate,
            join_s=hardware.join_s,
        ),
        residuals=hardware.residuals,
    )


def _attention(hardware: HardwareFile, spec: ModelSpec, itemsize: int) -> AttentionCosts:
    """The shared expert counts as the attention side's, and not as hidden behind the exchange."""
    table = spec.vocab * spec.hidden
    head_s = table * itemsize / hardware.dense_rate
    return AttentionCosts(
        num_sharing=1,
        sparse=_layer(hardware, spec, itemsize, spec.moe.shared_width),
        dense=_layer(hardware, spec, itemsize, spec.dense_width),
        head_0=hardware.step_s + hardware.dense_s + head_s,
        head_1=2 * table / hardware.dense_flops,
    )


def _layer(hardware: HardwareFile, spec: ModelSpec, itemsize: int, mlp_width: int) -> LayerCosts:
    """Projections and an MLP of this width read their weights once; decode attention reads keys and values."""
    attention = spec.attention
    projections = sum(prod(shape) for _, shape in attention.tensors(spec.hidden))
    num_weights = projections + 3 * spec.hidden * mlp_width
    cached_bytes = attention.kv_width() * itemsize
    start_s, sequence_s = hardware.attention_s, hardware.sequence_s
    token_s = cached_bytes / hardware.kv_rate
    if isinstance(attention, MlaSpec):
        # Absorbed: every head meets the latent and the rotary key, and sums up latents.
        flops = 2 * attention.num_heads * (2 * attention.kv_lora_rank + attention.rope_dim)
        start_s, sequence_s = hardware.mla_s, 0.0
        token_s = max(token_s, flops / hardware.mla_flops)
    floor_s = hardware.layer_s + hardware.dense_s + start_s
    return LayerCosts(
        c_a=floor_s,
        c_0=floor_s + num_weights * itemsize / hardware.dense_rate,
        alpha=sequence_s + 2 * num_weights / hardware.dense_flops,
        c_kv=token_s,
    )


def _experts(
    hardware: HardwareFile, spec: ModelSpec, model: ModelShape, balances: bool
) -> ExpertCosts:
    gate_flops = 2 * spec.hidden * spec.moe.num_experts
    return ExpertCosts(
        num_sharing=1,
        c_e=hardware.expert_s + (hardware.balance_s if balances else 0.0),
        beta=model.expert_bytes / hardware.expert_rate,
        gamma=6 * spec.hidden * spec.moe.width / hardware.expert_flops,
        delta=gate_flops / hardware.dense_flops + (hardware.balance_token_s if balances else 0.0),
    )


def _exchange(hardware: HardwareFile, model: ModelShape, part_bytes: int) -> ExchangeCoefs:
    per_rank_s = _ROUNDS * hardware.round_rank_s
    return ExchangeCoefs(
        fixed_s=max(hardware.link_s - _LINK_RANKS * per_rank_s, 0.0),
        per_rank_s=per_rank_s,
        per_row_s=model.row_bytes / hardware.link_rate,
        per_part_s=part_bytes * model.hidden / hardware.link_rate,
        message_s=hardware.message_s,
        node_rate=hardware.node_rate,
    )
