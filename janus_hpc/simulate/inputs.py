"""From the options of `janus-hpc simulate` to policies: profiles, routing and limits, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from janus_hpc.errors import UsageError
from janus_hpc.kernels.native.balance_library import open_balance_library
from janus_hpc.planner.a_max_lookup import Routing, traced_routing, uniform_routing
from janus_hpc.planner.hardware import hardware_profile, names
from janus_hpc.planner.policies import Inputs
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.profile_file import read_profile
from janus_hpc.planner.system import Context
from janus_hpc.routing.trace_file import check_fits, read_trace


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The options as given; `pod_ranks`: the most ranks of one deployment."""

    profile: str
    shape: str | None
    trace: Path | None
    context: float
    context_std: float
    slo_tpot_ms: float
    max_ranks: int
    pod_ranks: int
    max_sequences: int
    ranks_per_node: int
    part_bytes: int


def make_inputs(setting: Setting, cache_dir: Path) -> Inputs:
    """Errors: UsageError for a profile that is neither a file nor shipped, a shape that is missing or too many, and a
    trace of another model.
    """
    profile, plain = _profiles(setting)
    return Inputs(
        profile=profile,
        plain=plain,
        routing=_routing(setting, profile),
        context=Context(mean=setting.context, std=setting.context_std),
        slo_s=setting.slo_tpot_ms / 1000,
        max_ranks=min(setting.max_ranks, setting.pod_ranks),
        max_sequences=setting.max_sequences,
        ranks_per_node=setting.ranks_per_node,
        part_bytes=setting.part_bytes,
        library=open_balance_library(cache_dir)[0],
    )


def _profiles(setting: Setting) -> tuple[Profile, Profile]:
    """With and without decisions of balancing; a profile that was measured does not tell them apart."""
    path = Path(setting.profile)
    if setting.profile in names() and not path.is_file():
        if setting.shape is None:
            raise UsageError(f"--profile {setting.profile} is of no model: give --shape")
        balancing, plain = (
            hardware_profile(
                setting.profile, setting.shape, balances=its, part_bytes=setting.part_bytes
            )
            for its in (True, False)
        )
        return balancing, plain
    if not path.is_file():
        raise UsageError(
            f"--profile {setting.profile!r} is no file, and no shipped hardware; that is {', '.join(names())}"
        )
    if setting.shape is not None:
        raise UsageError(
            "--shape is for shipped hardware; a profile that was measured is of one model"
        )
    profile = read_profile(path)
    return profile, profile


def _routing(setting: Setting, profile: Profile) -> Routing:
    model = profile.model
    if setting.trace is None:
        return uniform_routing(model.num_experts, model.top_k)
    trace = read_trace(setting.trace)
    check_fits(
        trace,
        setting.trace,
        num_experts=model.num_experts,
        top_k=model.top_k,
        layer_ids=trace.layer_ids,
    )
    return traced_routing(trace, str(setting.trace))
