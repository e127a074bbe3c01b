"""Re-reads a whole results file and names everything that is wrong with it, in bounded memory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from janus_hpc.errors import JanusError, JournalError
from janus_hpc.results.access import Columns, open_results
from janus_hpc.results.attributes import attributes_are_intact
from janus_hpc.results.schema import (
    LAYER_ARRAYS,
    OFFSET,
    PLACEMENT_SLOTS,
    SLOT,
    TABLES,
    TEXT_COLUMNS,
    TOP_OFFSETS,
    TOP_VALUES,
)
from janus_hpc.results.structure import (
    check_layers,
    check_placements,
    check_routing,
    check_rows,
    check_samples,
    check_table,
    check_text,
    check_top_logprobs,
)
from janus_hpc.routing.storage import H5_ERRORS, check_hash, check_type
from janus_hpc.routing.trace_file import GROUP, ROUTING_ARRAYS

_BLOCK_BYTES = 1 << 22


@dataclass(kw_only=True)
class VerifyReport:
    """`findings` is empty for a whole file; the counts are 0 where the file cannot be read."""

    findings: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_failed: int = 0
    num_samples: int = 0
    first_row: int = 0

    def run(self, name: str, check: Callable[[], None]) -> None:
        """Runs one check; what it raises is a finding."""
        try:
            check()
        except JanusError as error:
            self.findings.append(f"{name}: {error}")
        except (UnicodeDecodeError, *H5_ERRORS) as error:
            self.findings.append(f"{name}: cannot be read: {error}")


def verify(path: Path) -> VerifyReport:
    """Checks storage checksums, hashes, lengths, offsets, order, codes, UTF-8 and counts of `path`.

    Raises UsageError only where there is no file at all; damage is a finding.
    """
    report = VerifyReport()
    try:
        file = open_results(path)
    except JournalError as error:
        report.findings.append(str(error))
        return report
    with file:
        columns = Columns(file)
        report.run("attributes", partial(_check_attributes, columns))
        for name, dtype in _datasets().items():
            report.run(name, partial(_check_dataset, columns, name, dtype))
        if not report.findings:
            _check_structure(columns, report)
    return report


def _check_structure(columns: Columns, report: VerifyReport) -> None:
    for group in TABLES:
        report.run(group, partial(check_table, columns, group))
    if report.findings:
        return
    report.run("rows", partial(_check_rows, columns, report))
    its = report.num_rows, report.num_samples, report.first_row
    report.run("samples", partial(check_samples, columns, *its))
    report.run("samples", partial(check_top_logprobs, columns))
    report.run("layers", partial(check_layers, columns))
    report.run("placements", partial(check_placements, columns))
    report.run(GROUP, partial(check_routing, columns))
    for name in TEXT_COLUMNS:
        report.run(name, partial(check_text, columns, name))


def _check_rows(columns: Columns, report: VerifyReport) -> None:
    attrs = columns.file.attrs
    report.num_rows = int(attrs["num_rows"])
    report.num_samples = int(attrs["num_samples"])
    report.first_row = int(attrs["first_row"])
    its = report.num_rows, report.num_samples, report.first_row
    report.num_failed = check_rows(columns, *its)
    num_input_rows = int(attrs["num_input_rows"])
    if report.first_row + report.num_rows > num_input_rows:
        raise JournalError(f"rows end beyond the input's {num_input_rows}")
    expected = int(attrs["num_failed"])
    if report.num_failed != expected:
        raise JournalError(f"{report.num_failed} rows failed, expected {expected}")


def _datasets() -> dict[str, str]:
    """Name and type of every dataset of the file."""
    found = {"rows/sample_offsets": OFFSET, f"samples/{TOP_OFFSETS}": OFFSET}
    for group, (columns, ragged) in TABLES.items():
        found.update({f"{group}/{name}": dtype for name, dtype in columns.items()})
        found.update({f"{group}/{name}_values": dtype for name, dtype in ragged.items()})
        found.update({f"{group}/{name}_offsets": OFFSET for name in ragged})
    found.update({f"samples/{name}": dtype for name, dtype in TOP_VALUES.items()})
    found.update({f"layers/{name}": dtype for name, dtype in LAYER_ARRAYS.items()})
    found[f"placements/{PLACEMENT_SLOTS}"] = SLOT
    found.update({f"{GROUP}/{name}": dtype for name, dtype in ROUTING_ARRAYS.items()})
    return found


def _check_attributes(columns: Columns) -> None:
    if not attributes_are_intact(columns.file):
        raise JournalError("not those that were written: their hash differs")


def _check_dataset(columns: Columns, name: str, dtype: str) -> None:
    """The dataset reads, has its type, and hashes to what was written."""
    dataset = columns.dataset(name)
    check_type(dataset, dtype)
    digest = hashlib.sha256()
    if dataset.ndim == 1:
        step = _BLOCK_BYTES // dataset.dtype.itemsize
        for start in range(0, len(dataset), step):
            digest.update(dataset[start : start + step].tobytes())
    else:
        digest.update(dataset[()].tobytes())
    check_hash(dataset, digest.hexdigest())
