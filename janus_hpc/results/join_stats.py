"""What the shards of a run counted of their routing, taken together. Small arrays, held whole."""

from collections.abc import Sequence

import h5py
import numpy as np

from janus_hpc.errors import JournalError
from janus_hpc.results.schema import LAYER_ARRAYS
from janus_hpc.results.stats import LayerStats
from janus_hpc.routing.storage import H5_ERRORS
from janus_hpc.routing.trace import RoutingTrace, merge_traces
from janus_hpc.routing.trace_file import read_routing


def read_layers(file: h5py.File) -> LayerStats | None:
    """The group `layers` of an open results file, None if its run counted nothing.

    Raises JournalError for a damaged file.
    """
    try:
        arrays = {name: file["layers"][name][()] for name in LAYER_ARRAYS}
        num_steps = int(file["layers"].attrs["num_steps"])
    except H5_ERRORS as error:
        raise JournalError(f"{file.filename}: layers are damaged: {error}") from None
    return LayerStats(**arrays, num_steps=num_steps) if arrays["expert_activations"].size else None


def join_layers(files: Sequence[h5py.File]) -> LayerStats | None:
    """Activations add up; means are weighted by passes. Raises JournalError for unlike models."""
    counted = [(its, layers) for its in files if (layers := read_layers(its)) is not None]
    if not counted:
        return None
    shape = counted[0][1].expert_activations.shape
    for file, layers in counted:
        if layers.expert_activations.shape != shape:
            raise JournalError(
                f"{file.filename}: counts {layers.expert_activations.shape} layers and experts,"
                f" {counted[0][0].filename} {shape}"
            )
    all_layers = [layers for _, layers in counted]
    weights = np.array([its.num_steps for its in all_layers], np.float64)
    weights = weights / weights.sum() if weights.sum() else np.full(len(weights), 1 / len(weights))
    activated = [its.activated_mean for its in all_layers]
    assert all(its is not None for its in activated)
    return LayerStats(
        expert_activations=np.sum([its.expert_activations for its in all_layers], axis=0),
        a_max_mean=weights @ np.array([its.a_max_mean for its in all_layers]),
        a_max_max=np.max([its.a_max_max for its in all_layers], axis=0),
        num_steps=sum(its.num_steps for its in all_layers),
        activated_mean=weights @ np.array(activated),
    )


def join_routing(files: Sequence[h5py.File]) -> RoutingTrace | None:
    """One trace of all shards that have one. Raises JournalError for unlike models."""
    traces = [(its, trace) for its in files if (trace := read_routing(its)) is not None]
    if not traces:
        return None
    kinds = {(its.layer_ids, its.num_experts, its.top_k) for _, its in traces}
    if len(kinds) > 1:
        names = ", ".join(str(its.filename) for its, _ in traces)
        raise JournalError(f"{names}: their routing is of different models")
    return merge_traces([trace for _, trace in traces])
