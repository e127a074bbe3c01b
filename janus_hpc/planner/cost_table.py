"""The file that `janus-hpc profile --exchange` writes: costs, and where and when they were measured.

Owns the format; knows neither how costs are measured nor what is predicted from them.
"""

from pathlib import Path

import msgspec

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.errors import UsageError

FORMAT, VERSION = "janus-hpc exchange costs", 1


class CostTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`hosts`: of each world rank; `made`: ISO 8601 date and time, UTC; `library`: MPI's version."""

    format: str = FORMAT
    version: int = VERSION
    made: str
    library: str
    hosts: tuple[str, ...]
    node_ids: tuple[int, ...]
    costs: ExchangeCosts


def write_table(path: Path, table: CostTable) -> None:
    """Write it as JSON; UsageError where the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def read_table(path: Path) -> CostTable:
    """Read and check it; UsageError naming file and fault."""
    again = "make it anew with `janus-hpc profile --exchange`"
    try:
        table = msgspec.json.decode(path.read_bytes(), type=CostTable)
    except OSError as error:
        raise UsageError(f"cost table {path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"cost table {path}: {error}: {again}") from error
    if (table.format, table.version) != (FORMAT, VERSION):
        found = f"{table.format!r} version {table.version}"
        raise UsageError(
            f"cost table {path}: is {found}, not {FORMAT!r} version {VERSION}: {again}"
        )
    if fault := _fault(table.costs):
        raise UsageError(f"cost table {path}: {fault}: {again}")
    return table


def _fault(costs: ExchangeCosts) -> str:
    """What in the numbers cannot be; empty if nothing."""
    memory = costs.memory
    if not (memory.copy_rate > 0 and memory.add_rate > 0 and memory.signal_s >= 0):
        return f"memory has a rate that is not above 0, or a time below 0: {memory}"
    for name, link in costs.links.items():
        for key, points in (("across", link.across), ("inside", link.inside)):
            sizes = [size for size, _ in points]
            if sizes != sorted(set(sizes)) or any(size < 1 or time <= 0 for size, time in points):
                return f"links.{name}.{key} is not ascending, or has a number that is not above 0"
        if link.across and not (link.node_rate > 0 and link.across_busy_s > 0):
            return f"links.{name} has no rate or time between nodes above 0"
    return ""
