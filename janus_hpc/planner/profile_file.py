"""The file that `janus-hpc profile` writes and plans are made from: reading, writing, refusing nonsense.

Owns the format; what the numbers mean is said in `profile_data`.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.planner.profile_data import ModelShape, Profile

FORMAT, VERSION = "janus-hpc profile", 1
_AGAIN = "make it anew with `janus-hpc profile`"
# Nothing that a rank does once a step or a layer takes so long.
_LONGEST_S = 1e4
# What has more is no machine and no model, and overflows the planner's integers.
_MOST_BYTES, _MOST_COUNT, _MOST_RATE = 1 << 50, 1 << 20, 1e18
_MOST_OF_MODEL = {
    "num_dense_layers": 4096,
    "num_sparse_layers": 4096,
    "num_experts": 32767,
    "top_k": 32767,
}


def write_profile(path: Path, profile: Profile) -> None:
    """Write it as JSON; UsageError where the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def read_profile(path: Path) -> Profile:
    """Read and check it; UsageError naming file, key and fault."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise UsageError(f"profile {path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"profile {path}: {error}: {_AGAIN}") from error
    if (profile.format, profile.version) != (FORMAT, VERSION):
        found = f"{profile.format!r} version {profile.version}"
        raise UsageError(f"profile {path}: is {found}, not {FORMAT!r} version {VERSION}: {_AGAIN}")
    for fault in _faults(profile):
        raise UsageError(f"profile {path}: {fault}: {_AGAIN}")
    return profile


def check_model(profile: Profile, where: object, shape: ModelShape) -> None:
    """UsageError unless the profile is of a model of this shape; its name does not matter."""
    for name in ModelShape.__struct_fields__:
        found, wanted = getattr(profile.model, name), getattr(shape, name)
        if name != "name" and found != wanted:
            raise UsageError(
                f"profile {where}: is of model {profile.model.name!r} with {name} {found}, but "
                f"{shape.name!r} has {wanted}: {_AGAIN} on this model"
            )


def check_hardware(profile: Profile, where: object, device: str, cores_per_node: int) -> None:
    """UsageError where the profile is of another kind of device, or of nodes with other cores."""
    own = profile.hardware
    if own.device != device:
        raise UsageError(
            f"profile {where}: is of {own.name!r} ({own.device}), but this run is on {device}: {_AGAIN} here"
        )
    if own.cores_per_node and own.cores_per_node != cores_per_node:
        raise UsageError(
            f"profile {where}: is of nodes with {own.cores_per_node} cores, but these have "
            f"{cores_per_node}: {_AGAIN} here"
        )


def _faults(profile: Profile) -> Iterator[str]:
    """What in the numbers cannot be, the first key first."""
    hardware, model = profile.hardware, profile.model
    for name, most in (
        ("memory_bytes", _MOST_BYTES),
        ("ranks_per_node", _MOST_COUNT),
        ("price", _MOST_RATE),
    ):
        if not _is_in(getattr(hardware, name), 0, most):
            yield f"hardware.{name} is {getattr(hardware, name)}, expected above 0 and below {most:g}"
    if not 0 <= hardware.cores_per_node < _MOST_COUNT:
        yield f"hardware.cores_per_node is {hardware.cores_per_node}, expected 0 to {_MOST_COUNT}"
    for name in ModelShape.__struct_fields__:
        value, most = getattr(model, name), _MOST_OF_MODEL.get(name, _MOST_BYTES)
        least = 0 if name == "num_dense_layers" else 1
        if isinstance(value, int) and not least <= value <= most:
            yield f"model.{name} is {value}, expected {least} to {most}"
    if model.top_k > model.num_experts:
        yield f"model.top_k is {model.top_k}, but there are {model.num_experts} experts"
    for name in ("attention", "experts"):
        sharing = [its.num_sharing for its in getattr(profile, name)]
        is_ascending = sharing == sorted(set(sharing))
        if not sharing or not is_ascending or sharing[0] < 1 or sharing[-1] > _MOST_COUNT:
            yield f"{name} has num_sharing {sharing}, expected ascending numbers from 1 on"
    yield from _bad_costs(profile, "")
    for name in ("checkpoint_rate", "link_rate"):
        if not _is_in(getattr(profile.loading, name), 0, _MOST_RATE):
            yield f"loading.{name} is {getattr(profile.loading, name)}, expected above 0"
    if not _is_in(profile.p99_ratio, 0.999, 1e6):
        yield f"p99_ratio is {profile.p99_ratio}, expected at least 1"
    for at, costs in enumerate(profile.experts):
        if costs.c_e + costs.beta + costs.gamma + costs.delta <= 0:
            yield f"experts[{at}] takes no time at all"


def _bad_costs(part: msgspec.Struct, where: str) -> Iterator[str]:
    """Every float below `attention`, `experts`, `exchange` and `loading` is finite and not negative."""
    for name in part.__struct_fields__:
        value, key = getattr(part, name), f"{where}{name}"
        if not where and name not in ("attention", "experts", "exchange", "loading"):
            continue
        for at, item in enumerate(value if isinstance(value, tuple) else (value,)):
            here = f"{key}[{at}]" if isinstance(value, tuple) else key
            if isinstance(item, msgspec.Struct):
                yield from _bad_costs(item, f"{here}.")
            elif isinstance(item, float) and not name.endswith("_rate"):
                if not 0 <= item < _LONGEST_S:
                    yield f"{here} is {item}, expected seconds from 0 to {_LONGEST_S:g}"
            elif isinstance(item, float) and not 0 <= item < _MOST_RATE:
                yield f"{here} is {item}, expected 0 to {_MOST_RATE:g}"


def _is_in(value: float, low: float, high: float) -> bool:
    return low < value < high
