"""The files of shipped hardware: what one kind of GPU and its node can do, whatever the model.

Owns their format; profiles are made from them in `hardware`.
"""

import math
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.planner.profile_data import Data

FORMAT, VERSION = "janus-hpc hardware", 1


class HardwarePoint(Data, frozen=True, kw_only=True):
    """A public measurement: a kernel of this `kind` took `seconds` at these bytes, floating point operations,
    sequences or ranks. `use`: part of the fit, or left out of it as a check.
    """

    kind: Literal["experts", "gqa", "mla", "dense", "link", "round"]
    name: str
    at: dict[str, float]
    seconds: float
    use: Literal["fit", "check"]


class HardwareFile(Data, frozen=True, kw_only=True):
    """`*_s` are seconds, `*_rate` bytes a second, `*_flops` operations a second; peaks are the vendor's.

    Kernels take a time that does not depend on their size, and add what reading and arithmetic take:
    `expert_s` a layer's routed experts, `dense_s` its projections, `attention_s` + `sequence_s` b decode
    attention over keys and values, `mla_s` the same with latent attention, `layer_s` the norms and the like.
    `step_s`: outside the layers. Exchange: `link_s` there and back among 8 ranks + bytes over `link_rate`, and
    `round_s` + `round_rank_s` a rank for one small round; `message_s` and `node_rate` between nodes. `balance_s` +
    `balance_token_s` N: deciding which replicas serve N tokens. `node_read_rate`: a node's from a checkpoint,
    `rank_load_rate`: a rank's from another; `join_s`: a change of roles besides.

    `held`: coefficients that no points determine: in proportion to the peaks those of `based_on`, or as `sources`
    say.
    """

    format: str
    version: int
    name: str
    basis: str
    sources: tuple[str, ...]
    based_on: str = ""
    held: tuple[str, ...] = ()
    memory_bytes: int
    ranks_per_node: int
    price: float
    peak_rate: float
    peak_flops: float
    peak_link_rate: float
    expert_s: float
    expert_rate: float
    expert_flops: float
    dense_s: float
    dense_rate: float
    dense_flops: float
    attention_s: float
    sequence_s: float
    kv_rate: float
    mla_s: float
    mla_flops: float
    layer_s: float
    step_s: float
    link_s: float
    link_rate: float
    round_s: float
    round_rank_s: float
    message_s: float
    node_rate: float
    balance_s: float
    balance_token_s: float
    node_read_rate: float
    rank_load_rate: float
    join_s: float
    residuals: dict[str, float] = msgspec.field(default_factory=dict)
    points: tuple[HardwarePoint, ...] = ()


def names() -> list[str]:
    """Of all shipped hardware, in alphabetical order."""
    return sorted(its.name.removesuffix(".json") for its in _folder().iterdir() if _is_file(its))


@cache
def read_hardware(name: str) -> HardwareFile:
    """Errors: UsageError for an unknown name, listing the known ones, and for a file with a fault."""
    if name not in names():
        raise UsageError(f"unknown hardware {name!r}; shipped are {', '.join(names())}")
    return parse(name, (_folder() / f"{name}.json").read_bytes())


def parse(name: str, content: bytes) -> HardwareFile:
    """Errors: UsageError naming the file, the key and the fault."""
    try:
        hardware = msgspec.json.decode(content, type=HardwareFile)
    except msgspec.DecodeError as error:
        raise UsageError(f"hardware {name}: {error}") from error
    if (hardware.format, hardware.version) != (FORMAT, VERSION):
        found = f"{hardware.format!r} version {hardware.version}"
        raise UsageError(f"hardware {name}: is {found}, not {FORMAT!r} version {VERSION}")
    for key in HardwareFile.__struct_fields__:
        value = getattr(hardware, key)
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UsageError(f"hardware {name}: {key} is {value}, expected above 0")
    return hardware


def _folder() -> Traversable:
    return files("janus_hpc.planner") / "hardware"


def _is_file(entry: Traversable) -> bool:
    return entry.name.endswith(".json")
