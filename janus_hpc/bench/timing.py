"""Times of calls on one device, taken in turn so that a busy machine disturbs all alike; and its memory's speed.

Knows nothing of what the calls compute.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]

# A run repeats its call for about so long, at most so often.
RUN_S = 0.005
MAX_CALLS = 1000
# Bytes of the buffer by which memory is measured: more than any cache holds.
CPU_BUFFER_BYTES, CUDA_BUFFER_BYTES = 256 << 20, 1 << 30


def times_us(calls: Mapping[str, Call], device: torch.device, repeats: int) -> dict[str, float]:
    """Median of `repeats` runs of each call, microseconds a call.

    On a GPU each call is captured in a CUDA graph, which is replayed between two events: what its
    launches cost the host is not in the time. A call that cannot be captured raises there.
    """
    found = _all_times_us(calls, device, repeats)
    return {name: statistics.median(times) for name, times in found.items()}


def _all_times_us(
    calls: Mapping[str, Call], device: torch.device, repeats: int
) -> dict[str, list[float]]:
    runs = {name: _runner(call, device) for name, call in calls.items()}
    counts = {name: _count(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run(counts[name]) / counts[name] * 1e6)
    return found


def _count(run: Callable[[int], float]) -> int:
    """Calls a run, by one that is not counted."""
    return max(1, min(MAX_CALLS, math.ceil(RUN_S / max(run(1), 1e-9))))


def _runner(call: Call, device: torch.device) -> Callable[[int], float]:
    """Seconds of so many calls; warmed up."""
    if device.type == "cuda":
        return _graph_runner(call)
    call()

    def run(count: int) -> float:
        started_s = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started_s

    return run


def _graph_runner(call: Call) -> Callable[[int], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run(count: int) -> float:
        first.record()
        for _ in range(count):
            graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    return run


def memory_speeds(device: torch.device, repeats: int) -> dict[str, float]:
    """GB/s of reading (a sum, a dot product with itself) and of copying (bytes read and written).

    A buffer far larger than caches, and the best of the runs: what memory can do.
    """
    num_bytes = CPU_BUFFER_BYTES if device.type == "cpu" else CUDA_BUFFER_BYTES
    a, b = (torch.ones(num_bytes // 4, device=device) for _ in range(2))
    calls: dict[str, Call] = {
        "sum": a.sum,
        "dot": lambda: torch.dot(a, a),
        "copy": lambda: b.copy_(a),
    }
    best_us = {name: min(times) for name, times in _all_times_us(calls, device, repeats).items()}
    return {
        "read_gb_s": num_bytes / min(best_us["sum"], best_us["dot"]) / 1e3,
        "copy_gb_s": 2 * num_bytes / best_us["copy"] / 1e3,
    }
