"""The batches of a results file as records and as a table of text: what was decided, predicted and measured."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_hpc.errors import JournalError
from janus_hpc.results.access import Columns, open_results
from janus_hpc.results.schema import BATCH_COLUMNS, BATCH_RAGGED
from janus_hpc.routing.storage import H5_ERRORS

Record = dict[str, Any]


def read_batches(path: Path) -> list[Record]:
    """One record a batch, with all columns of the group. JournalError for a damaged file."""
    with open_results(path) as file:
        columns = Columns(file)
        try:
            count = len(columns.dataset("batches/num_rows"))
            plain = {name: columns.read(f"batches/{name}", 0, count) for name in BATCH_COLUMNS}
            texts = {name: columns.read_texts(f"batches/{name}", 0, count) for name in BATCH_RAGGED}
        except (*H5_ERRORS, UnicodeDecodeError) as error:
            raise JournalError(f"{path}: damaged: {error}") from None
    return [
        {name: values[at].item() for name, values in plain.items()}
        | {name: values[at] for name, values in texts.items()}
        for at in range(count)
    ]


def table(batches: Sequence[Record]) -> list[str]:
    """A line a batch under a heading: milliseconds of a decode step, predicted/measured, by stage."""
    head = ("batch", "split", "rows", "tokens", "s", "TPOT", "attention", "experts", "exchange")
    lines = [head]
    for number, its in enumerate(batches):
        stages = [
            f"{_ms(its[f'{told}_predicted_s'])}/{_ms(its[found])}"
            for told, found in (
                ("tpot", "decode_tpot_s"),
                ("attention", "attention_s"),
                ("moe", "moe_s"),
                ("comm", "comm_s"),
            )
        ]
        counts = (str(its["num_rows"]), str(its["num_tokens"]), f"{its['seconds']:.2f}")
        lines.append((str(number), its["split"], *counts, *stages))
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]


def decisions(batches: Sequence[Record]) -> list[str]:
    """What was decided before each batch, and what moving took."""
    return [
        f"before batch {number}: {its['decision']}"
        + (f" [{its['move_s']:.3g} s, {its['moved_bytes']} bytes]" if its["move_s"] else "")
        for number, its in enumerate(batches)
    ]


def without_nan(batches: Sequence[Record]) -> list[Record]:
    """The records for JSON, which has no NaN: None where a figure is not known."""
    return [{name: _known(value) for name, value in its.items()} for its in batches]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1e3:.3g}"
