"""Check `kernels`: whether the C kernels can be compiled and loaded on every node."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, note, warning


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """Of one rank. `problem`: why there are no compiled kernels, "" where there are."""

    path: str = ""
    problem: str = ""
    on_gpu: bool = False


def gather(context: Context) -> KernelFacts:
    """Compiles them unless the cache has them, as the first run would."""
    import torch

    from janus_hpc.kernels.native.build import BuildError, build_library

    on_gpu = torch.cuda.is_available() and context.target.device != "cpu"
    try:
        path = build_library(context.env.cache_dir)
        ctypes.CDLL(str(path))
    except (BuildError, OSError) as problem:
        return KernelFacts(problem=str(problem), on_gpu=on_gpu)
    return KernelFacts(path=str(path), on_gpu=on_gpu)


def judge(facts: Sequence[KernelFacts], context: Context) -> list[Finding]:
    """Pure."""
    without = [r for r, its in enumerate(facts) if its.problem]
    if not without:
        return [fine(f"compiled and loaded: {facts[0].path}")]
    problem = facts[without[0]].problem
    fix = (
        "install a C compiler (gcc) on the hosts that compute, and let $XDG_CACHE_HOME or ~/.cache be "
        "writable"
    )
    if len(without) < len(facts):
        return [
            error(
                f"{len(without)} of {len(facts)} ranks have no compiled kernels: {problem}",
                why="ranks lay shared weights out in different orders with and without them: a run is refused",
                fix=fix,
                ranks=without,
            )
        ]
    if all(its.on_gpu for its in facts):
        return [note(f"no compiled kernels for CPUs ({problem}); GPUs do not need them")]
    return [
        warning(
            f"no compiled kernels: {problem}",
            why="torch computes the experts instead, several times slower at small batches",
            fix=fix,
        )
    ]


CHECK = Check(name="kernels", gather=gather, judge=judge)
