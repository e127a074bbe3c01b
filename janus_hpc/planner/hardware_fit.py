"""The fit of a hardware file's coefficients to its points, by least squares of relative errors. Pure.

`python -m janus_hpc.planner.hardware_fit` compares every point of the shipped files with what they say of it.
"""

from collections.abc import Sequence

import numpy as np

from janus_hpc.planner.hardware_files import HardwareFile, HardwarePoint, names, read_hardware

# Kind of points -> its constant, and what its terms are proportional to with the coefficient's name. Those ending
# in _s are seconds a unit, the others units a second.
TERMS = {
    "experts": ("expert_s", {"bytes": "expert_rate", "flops": "expert_flops"}),
    "dense": ("dense_s", {"bytes": "dense_rate", "flops": "dense_flops"}),
    "gqa": ("attention_s", {"sequences": "sequence_s", "bytes": "kv_rate"}),
    "mla": ("mla_s", {"flops": "mla_flops"}),
    "round": ("round_s", {"ranks": "round_rank_s"}),
    "link": ("link_s", {"bytes": "link_rate"}),
}


def predicted_s(hardware: HardwareFile, point: HardwarePoint) -> float:
    """What the file's coefficients say of a point. Errors: KeyError for a point without one of the quantities."""
    if point.kind == "mla":
        reading = point.at["bytes"] / hardware.kv_rate
        return hardware.mla_s + max(reading, point.at["flops"] / hardware.mla_flops)
    constant, terms = TERMS[point.kind]
    slopes = sum(_slope(hardware, name) * point.at[key] for key, name in terms.items())
    return float(getattr(hardware, constant) + slopes)


def refit(hardware: HardwareFile) -> dict[str, float]:
    """The coefficients that its points determine: all of TERMS for a kind with points, less those that are held."""
    found: dict[str, float] = {}
    for kind in TERMS:
        points = [its for its in hardware.points if its.kind == kind and its.use == "fit"]
        if points:
            found |= _fit(hardware, kind, points)
    return found


def mean_errors(hardware: HardwareFile, use: str) -> dict[str, float]:
    """Kind of points -> mean size of their relative errors, over the points of this use."""
    found: dict[str, list[float]] = {}
    for point in hardware.points:
        if point.use == use:
            error = abs(predicted_s(hardware, point) / point.seconds - 1)
            found.setdefault(point.kind, []).append(error)
    return {kind: float(np.mean(its)) for kind, its in found.items()}


def _fit(hardware: HardwareFile, kind: str, points: Sequence[HardwarePoint]) -> dict[str, float]:
    constant, terms = TERMS[kind]
    free = {key: name for key, name in terms.items() if name not in hardware.held}
    held = {key: name for key, name in terms.items() if name in hardware.held}
    seconds = np.array([its.seconds for its in points])
    known = np.array(
        [sum(_slope(hardware, name) * p.at[key] for key, name in held.items()) for p in points]
    )
    columns = np.array([[1.0, *(p.at[key] for key in free)] for p in points]) / seconds[:, None]
    scale = columns.max(axis=0)
    solution = np.linalg.lstsq(columns / scale, 1 - known / seconds, rcond=None)[0] / scale
    slopes = zip(free.values(), solution[1:].tolist(), strict=True)
    return {constant: float(solution[0])} | {
        name: slope if name.endswith("_s") else 1 / slope for name, slope in slopes
    }


def _slope(hardware: HardwareFile, name: str) -> float:
    """Seconds a unit."""
    value: float = getattr(hardware, name)
    return value if name.endswith("_s") else 1 / value


def _main() -> None:
    for name in names():
        hardware = read_hardware(name)
        for point in hardware.points:
            error = predicted_s(hardware, point) / point.seconds - 1
            text = (
                f"{name} {point.use:5} {point.kind:7} {point.seconds * 1e6:7.1f} us {error:+7.1%}"
            )
            print(f"{text}  {point.name}")
        for use in ("fit", "check"):
            for kind, error in mean_errors(hardware, use).items():
                print(f"{name} mean error of {kind} ({use}): {error:.1%}")


if __name__ == "__main__":
    _main()
