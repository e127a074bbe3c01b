"""The group `routing`: written into results files and into files of its own, read from either."""

import os
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

import janus_hpc
from janus_hpc.errors import UsageError
from janus_hpc.routing.storage import H5_ERRORS, LIBVER, read_array, write_array
from janus_hpc.routing.trace import RoutingTrace

FILE_NAME: Final = "janus-hpc trace"
SCHEMA_NAME: Final = "janus-hpc routing"
SCHEMA_VERSION: Final = 1
GROUP: Final = "routing"

# Dataset -> type; the shapes are those of RoutingTrace.
ROUTING_ARRAYS: Final = {
    "layer_ids": "<i4",
    "num_tokens": "<i8",
    "counts": "<i8",
    "coactivation": "<i8",
    "num_routes": "<i8",
    "routes": "<i2",
}

_FIX = (
    "give the results file of a run that recorded its routing, or a trace from"
    " `janus-hpc results export RESULTS --to trace -o TRACE`"
)


def write_routing(file: h5py.File, trace: RoutingTrace | None) -> None:
    """Writes the group; without a trace all its arrays are empty."""
    group = file.create_group(GROUP)
    group.attrs["schema_name"] = SCHEMA_NAME
    group.attrs["schema_version"] = SCHEMA_VERSION
    group.attrs["num_experts"] = 0 if trace is None else trace.num_experts
    group.attrs["top_k"] = 0 if trace is None else trace.top_k
    arrays = _no_arrays() if trace is None else _arrays(trace)
    for name, dtype in ROUTING_ARRAYS.items():
        write_array(group, name, dtype, arrays[name])


def read_routing(file: h5py.File) -> RoutingTrace | None:
    """The trace in an open file, None if its run recorded none.

    Raises UsageError, naming no file, for a group that is absent, of another version or damaged.
    """
    try:
        if GROUP not in file:
            raise UsageError(f"no group {GROUP!r}, which holds a routing trace")
        group = file[GROUP]
        schema = group.attrs.get("schema_name"), group.attrs.get("schema_version")
        if schema != (SCHEMA_NAME, SCHEMA_VERSION):
            raise UsageError(
                f"group {GROUP!r} is {schema[0]!r} version {schema[1]}; this program reads"
                f" {SCHEMA_NAME!r} version {SCHEMA_VERSION}"
            )
        arrays = {name: read_array(group, name, dtype) for name, dtype in ROUTING_ARRAYS.items()}
        num_experts, top_k = int(group.attrs["num_experts"]), int(group.attrs["top_k"])
    except (OverflowError, *H5_ERRORS) as error:
        raise UsageError(f"group {GROUP!r} is damaged: {error}") from None
    if arrays["layer_ids"].ndim != 1:
        raise UsageError(f"group {GROUP!r} is damaged: layer_ids is no list")
    if not any(array.size for array in arrays.values()):
        return None
    trace = RoutingTrace(
        layer_ids=tuple(arrays["layer_ids"].tolist()),
        num_experts=num_experts,
        top_k=top_k,
        num_tokens_L=arrays["num_tokens"],
        counts_LE=arrays["counts"],
        coactivation_LEE=arrays["coactivation"],
        num_routes_L=arrays["num_routes"],
        routes_LWK=arrays["routes"],
    )
    trace.check()
    return trace


def trace_bytes(trace: RoutingTrace, *, model: str, created: int) -> bytes:
    """A trace file as bytes. `model` is the model's name or folder, `created` seconds since 1970."""
    core: dict[str, Any] = {"driver": "core", "backing_store": False}
    with h5py.File("trace", "w", libver=LIBVER, **core) as file:
        file.attrs["schema_name"] = FILE_NAME
        file.attrs["janus_version"] = janus_hpc.__version__
        file.attrs["model"] = model
        file.attrs["created"] = created
        write_routing(file, trace)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def write_trace(path: Path, trace: RoutingTrace, *, model: str, created: int) -> None:
    """Writes a trace file; `path` is whole or untouched. Raises UsageError if it cannot be."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.write_bytes(trace_bytes(trace, model=model, created=created))
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot write: {error.strerror}") from None


def read_trace(path: Path) -> RoutingTrace:
    """The trace in a trace file or a results file. Raises UsageError naming the file and the fix."""
    if not path.exists():
        raise UsageError(f"{path}: no such file; {_FIX}")
    if not path.is_file():
        raise UsageError(f"{path}: not a file; {_FIX}")
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except H5_ERRORS as error:
        raise UsageError(f"{path}: not a readable HDF5 file: {error}; {_FIX}") from None
    with file:
        try:
            trace = read_routing(file)
        except UsageError as error:
            raise UsageError(f"{path}: {error}; {_FIX}") from None
    if trace is None:
        raise UsageError(f"{path}: its run recorded no routing; {_FIX}")
    return trace


def check_fits(
    trace: RoutingTrace, path: Path, *, num_experts: int, top_k: int, layer_ids: tuple[int, ...]
) -> None:
    """Raises UsageError if the trace in `path` is of another model than the one described."""
    fix = "give a trace of this model"
    for what, found, expected in (
        ("experts", trace.num_experts, num_experts),
        ("choices a token", trace.top_k, top_k),
        ("MoE layers", len(trace.layer_ids), len(layer_ids)),
    ):
        if found != expected:
            raise UsageError(f"trace {path} has {found} {what}, the model {expected}; {fix}")
    for its, models in zip(trace.layer_ids, layer_ids, strict=True):
        if its != models:
            raise UsageError(f"trace {path} has MoE layer {its}, the model {models}; {fix}")


def _arrays(trace: RoutingTrace) -> dict[str, npt.ArrayLike]:
    return {
        "layer_ids": trace.layer_ids,
        "num_tokens": trace.num_tokens_L,
        "counts": trace.counts_LE,
        "coactivation": trace.coactivation_LEE,
        "num_routes": trace.num_routes_L,
        "routes": trace.routes_LWK,
    }


def _no_arrays() -> dict[str, npt.ArrayLike]:
    dims = {"counts": 2, "coactivation": 3, "routes": 3}
    return {name: np.zeros((0,) * dims.get(name, 1)) for name in ROUTING_ARRAYS}
