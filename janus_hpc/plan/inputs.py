"""From options to what planning works on: profiles, routing and limits, read and checked against each other."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.models.registry import load_spec
from janus_hpc.models.spec import DTYPE_BYTES
from janus_hpc.plan.request import Request
from janus_hpc.planner.a_max_lookup import AMaxLookup, Routing, traced_routing, uniform_routing
from janus_hpc.planner.profile_data import ModelShape, Profile, shape_of
from janus_hpc.planner.profile_file import check_model, read_profile
from janus_hpc.planner.system import KINDS, Context, System

ALL_MICROBATCHES = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Of the attention and the expert role: one and the same where all ranks are alike. `plain`: of
    ranks that take no balancing decision, to compare with; as `attention` where that is unknown.
    """

    attention: Profile
    experts: Profile
    plain: Profile


def load_profiles(request: Request) -> Profiles:
    """Read them; UsageError where they are of different models, or of another one than --model."""
    attention = _profile(request.profile, request)
    experts, plain = attention, _profile(request.profile, request, balances=False)
    if request.expert_profile is not None:
        experts = _profile(request.expert_profile, request)
        check_model(experts, request.expert_profile, attention.model)
    if request.model is not None:
        check_model(attention, request.profile, _model_shape(request.model, request.dtype))
    is_one = experts is attention and request.price_attention == request.price_expert
    attention = _priced(attention, request.price_attention)
    return Profiles(
        attention=attention,
        experts=attention if is_one else _priced(experts, request.price_expert),
        plain=_priced(plain, request.price_expert),
    )


def read_routing(request: Request, model: ModelShape) -> Routing:
    """Of --trace, or an even one. UsageError for a trace of another model."""
    if request.trace is None:
        return uniform_routing(model.num_experts, model.top_k)
    from janus_hpc.routing.trace_file import check_fits, read_trace

    trace = read_trace(request.trace)
    layers = trace.layer_ids
    if request.model is not None:
        layers = load_spec(request.model).sparse_layers
    elif len(layers) != model.num_sparse_layers:
        layers = tuple(range(model.num_sparse_layers))
    check_fits(
        trace, request.trace, num_experts=model.num_experts, top_k=model.top_k, layer_ids=layers
    )
    return traced_routing(trace, str(request.trace))


def make_system(
    request: Request, profiles: Profiles, context: Context, a_max: AMaxLookup
) -> System:
    """All that searches need. UsageError for an unknown kind of exchange."""
    kinds = KINDS[1:] if request.exchange == "auto" else tuple(request.exchange.split(","))
    for kind in kinds:
        if kind not in KINDS[1:]:
            raise UsageError(
                f"--exchange {kind!r}: expected auto, or some of {','.join(KINDS[1:])}"
            )
    if request.gate == "agate":
        if "one-phase" not in kinds:
            raise UsageError("--gate agate is planned with --exchange one-phase only")
        kinds = ("one-phase",)
    return System(
        attention=profiles.attention,
        experts=profiles.experts,
        a_max=a_max,
        context=context,
        max_sequences=request.max_sequences,
        max_step_tokens=request.max_step_tokens,
        microbatches=(
            ALL_MICROBATCHES if request.microbatches == "auto" else (int(request.microbatches),)
        ),
        ranks_per_node=request.ranks_per_node or 0,
        gate=request.gate,
        kinds=kinds,
        slo_ratio=profiles.attention.p99_ratio if request.slo_percentile == "p99" else 1.0,
    )


def _profile(name: str, request: Request, *, balances: bool = True) -> Profile:
    path = Path(name)
    if path.exists() or path.suffix == ".json" or len(path.parts) > 1:
        if request.shape is not None:
            raise UsageError(f"--shape is for shipped hardware; {name} says which model it is of")
        return read_profile(path)
    from janus_hpc.planner.hardware import hardware_profile, names, profile_for

    if name not in names():
        raise UsageError(
            f"--profile {name!r} is no file, and no shipped hardware; that is {', '.join(names())}"
        )
    if request.model is not None:
        spec, shape = load_spec(request.model), _model_shape(request.model, request.dtype)
        size = DTYPE_BYTES[shape.dtype]
        return profile_for(name, spec, shape.dtype, size, shape.name, balances=balances)
    if request.shape is None:
        raise UsageError(f"--profile {name} is hardware alone: give --shape NAME or --model DIR")
    return hardware_profile(name, request.shape, balances=balances)


def _model_shape(folder: Path, asked: str) -> ModelShape:
    spec = load_spec(folder)
    dtype = spec.stored_dtype if asked == "auto" else asked
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"--dtype {dtype!r} of {folder}: expected one of {', '.join(DTYPE_BYTES)}")
    return shape_of(spec, dtype, DTYPE_BYTES[dtype], str(folder))


def _priced(profile: Profile, price: float | None) -> Profile:
    if price is None:
        return profile
    hardware = msgspec.structs.replace(profile.hardware, price=price)
    return msgspec.structs.replace(profile, hardware=hardware)
