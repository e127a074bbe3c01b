"""Joules that this node's processors and GPUs have used, where their counters can be read.

Never a partial sum: what cannot be read makes the whole unknown, with the reason.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Energy:
    """`joules` None where unknown: `why` then says so; else `sources` are what was read."""

    joules: float | None
    why: str = ""
    sources: tuple[str, ...] = ()

    @staticmethod
    def total(parts: Sequence["Energy"]) -> "Energy":
        """Of all nodes and GPUs: known where every part is."""
        unknown = [its.why for its in parts if its.joules is None]
        if unknown or not parts:
            return Energy(joules=None, why=unknown[0] if unknown else "nothing was read")
        sources = dict.fromkeys(source for its in parts for source in its.sources)
        return Energy(joules=sum(its.joules or 0.0 for its in parts), sources=tuple(sources))


class Counter(Protocol):
    """A counter that only rises; `poll` often enough that it wraps at most once in between."""

    def poll(self) -> None: ...

    def joules(self) -> float: ...


class WrappingCounter:
    """Joules since the first poll, from a counter in microjoules that starts again at `range_uj` (0: never)."""

    def __init__(self, read_uj: Callable[[], int], range_uj: int = 0) -> None:
        self._read_uj = read_uj
        self._range_uj = range_uj
        self._last_uj = read_uj()
        self._sum_uj = 0

    def poll(self) -> None:
        now_uj = self._read_uj()
        passed_uj = now_uj - self._last_uj
        self._sum_uj += passed_uj + (self._range_uj if passed_uj < 0 else 0)
        self._last_uj = now_uj

    def joules(self) -> float:
        return self._sum_uj / 1e6


class EnergyMeter:
    """Counters of what this rank answers for: its node's processors, its GPU. `error`: why there are none."""

    def __init__(self, counters: Sequence[Counter], what: str, error: str = "") -> None:
        self._counters = counters
        self._what = what
        self._error = error
        # The watchdog polls, and the work reads.
        self._lock = threading.Lock()

    def poll(self) -> None:
        """To be called every few seconds; a counter that fails is given up, and with it the sum."""
        with self._lock:
            if self._error:
                return
            try:
                for counter in self._counters:
                    counter.poll()
            except (OSError, ValueError) as error:
                self._error = f"{self._what}: {error}"

    def read(self) -> Energy:
        """Since it was made."""
        self.poll()
        if self._error:
            return Energy(joules=None, why=self._error)
        return Energy(joules=sum(its.joules() for its in self._counters), sources=(self._what,))


def rapl_meter(powercap: Path = POWERCAP) -> EnergyMeter:
    """The node's processors by RAPL: its packages, which include their cores; memory where it is apart."""
    try:
        zones = [its for its in sorted(powercap.glob("intel-rapl:*")) if _is_counted(its)]
        counters = [_rapl_counter(zone) for zone in zones]
    except (OSError, ValueError) as error:
        return EnergyMeter([], "RAPL", f"RAPL cannot be read: {error}")
    if not counters:
        return EnergyMeter([], "RAPL", f"no RAPL counters in {powercap}")
    return EnergyMeter(counters, "processors by RAPL")


def _is_counted(zone: Path) -> bool:
    name = (zone / "name").read_text().strip()
    return name.startswith("package") or name == "dram"


def _rapl_counter(zone: Path) -> WrappingCounter:
    largest = int((zone / "max_energy_range_uj").read_text())
    return WrappingCounter(lambda: int((zone / "energy_uj").read_text()), largest)


def nvml_meter(uuid: str) -> EnergyMeter:
    """One GPU by NVML, named by its UUID without the leading `GPU-`."""
    try:
        import pynvml
    except ImportError as error:
        return EnergyMeter([], "NVML", f"NVML cannot be used: {error}")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())

        def read_uj() -> int:
            try:
                return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000
            except pynvml.NVMLError as error:
                raise OSError(str(error)) from error

        return EnergyMeter([WrappingCounter(read_uj)], "GPUs by NVML")
    except (OSError, pynvml.NVMLError) as error:
        return EnergyMeter([], "NVML", f"NVML cannot read this GPU's energy: {error}")
