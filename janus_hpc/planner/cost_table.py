"""The file that `janus-hpc profile --exchange` writes: costs, and where and when they were measured.

Owns the format; knows neither how costs are measured nor what is predicted from them.
"""

from pathlib import Path

import msgspec

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.errors import UsageError

FORMAT, VERSION = "janus-hpc exchange costs", 1
_LONGEST_S, _MOST_BYTES, _LEAST_RATE, _MOST_RATE = 1e4, 1 << 50, 1e3, 1e18


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
    if not (_is_rate(memory.copy_rate) and _is_rate(memory.add_rate) and _is_time(memory.signal_s)):
        return f"memory has a rate or a time that cannot be: {memory}"
    for name, link in costs.links.items():
        for key, points in (("across", link.across), ("inside", link.inside)):
            sizes = [size for size, _ in points]
            if sizes != sorted(set(sizes)) or any(not _is_point(*its) for its in points):
                return f"links.{name}.{key} is not ascending, or has a number that cannot be"
        if link.across and not (_is_rate(link.node_rate) and 0 < link.across_busy_s < _LONGEST_S):
            return f"links.{name} has no rate or no time between nodes that can be"
    return ""


def _is_point(size: int, seconds: float) -> bool:
    return 1 <= size <= _MOST_BYTES and 0 < seconds < _LONGEST_S


def _is_rate(rate: float) -> bool:
    """Bytes a second; with less the search for a kind would take as long as the run."""
    return _LEAST_RATE <= rate < _MOST_RATE


def _is_time(seconds: float) -> bool:
    return 0 <= seconds < _LONGEST_S
