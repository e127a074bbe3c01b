"""Joins the results files of a run's shards into one, or the journals of a run whose rows are all
finished. Written aside, verified and renamed. For one process; needs no MPI.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.access import Columns, open_results
from janus_hpc.results.attributes import decoded, write_attributes
from janus_hpc.results.durable import check_replaceable, refuse_input, written_aside
from janus_hpc.results.join_stats import join_layers, join_routing
from janus_hpc.results.join_tables import copy_tables, number_parts
from janus_hpc.results.lock import run_lock
from janus_hpc.results.manifest import (
    MANIFEST_NAME,
    Fingerprint,
    Manifest,
    fingerprint_bytes,
    load_manifest,
)
from janus_hpc.results.merge import (
    MergeReport,
    Progress,
    merge,
    own_attributes,
    refuse_damaged,
    silent,
)
from janus_hpc.results.shards import ROW_FIELDS, Shard, in_order, read_shard
from janus_hpc.results.stats import RunStats
from janus_hpc.results.verify import verify
from janus_hpc.results.writer import write_layers
from janus_hpc.routing.storage import LIBVER
from janus_hpc.routing.trace_file import write_routing
from janus_hpc.rows.index_file import INDEX_NAME, InputIndex

# What a start says of itself as the attributes of a finished run's file do.
_LAUNCH_ATTRIBUTES = ("model", "config", "hosts", "launcher", "slurm")
_COUNTS = ("num_rows", "num_failed", "num_samples", "num_duplicates", "num_unequal_duplicates")


def join(
    paths: Sequence[Path],
    out_path: Path,
    *,
    partial: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> MergeReport:
    """Writes the rows of the shard files `paths`, named in any order, to `out_path`.

    Raises UsageError if they are not one run's shards, together all rows of its input (with
    `partial`: rows one after the other), JournalError for a damaged file, JanusError if the file
    cannot be written. `progress` is told what is done.
    """
    _refuse_output(paths, out_path, overwrite)
    shards = in_order([read_shard(path) for path in paths], partial=partial)
    for shard in shards:
        progress(f"verifying {shard.path}")
        findings = verify(shard.path).findings
        if findings:
            raise JournalError(f"{shard.path}: damaged: {findings[0]}")
    with written_aside(out_path) as aside:
        progress(f"joining {len(shards)} files")
        report = _write(aside, shards)
        progress("verifying what was written")
        refuse_damaged(aside, report)
    return report


def join_journals(
    run_dir: Path, out_path: Path, *, overwrite: bool = False, progress: Progress = silent
) -> MergeReport:
    """Writes the rows in the journals of the run folder `run_dir` to `out_path`: what an
    interrupted run would have written if all its rows are finished. What it measured is lost; of
    its provenance, what its last start told.

    Raises UsageError for a folder without a run, JournalError for missing rows or damage.
    """
    _refuse_output((), out_path, overwrite)
    manifest = load_manifest(run_dir)
    if manifest is None:
        raise UsageError(f"{run_dir}: no run folder: it has no manifest.json")
    num_rows, first_row, stop_row = _rows_of(run_dir, manifest.fingerprint)
    with run_lock(run_dir):
        return merge(
            run_dir,
            out_path,
            num_rows,
            fingerprint_bytes(manifest.fingerprint),
            _launch_attributes(manifest) | {"fingerprint": manifest.fingerprint},
            stats=RunStats(launches=manifest.launches),
            chat=InputIndex.open(run_dir / INDEX_NAME).chat,
            first_row=first_row,
            stop_row=stop_row,
            progress=progress,
        )


def _launch_attributes(manifest: Manifest) -> dict[str, Any]:
    info = manifest.launches[-1].info if manifest.launches else {}
    return {name: info[name] for name in _LAUNCH_ATTRIBUTES if info.get(name) is not None}


def _rows_of(run_dir: Path, fields: Fingerprint) -> tuple[int, int, int]:
    """The input's number of rows, and the first and the end of those the run answers."""
    num_rows = fields.get("num_rows")
    found = num_rows, fields.get("first_row", 0), fields.get("stop_row", num_rows)
    num_rows, first_row, stop_row = (its if isinstance(its, int) else -1 for its in found)
    if not 0 <= first_row <= stop_row <= num_rows:
        raise JournalError(f"{run_dir / MANIFEST_NAME}: rows {found[1:]} of {found[0]} are none")
    return num_rows, first_row, stop_row


def _refuse_output(paths: Sequence[Path], out_path: Path, overwrite: bool) -> None:
    check_replaceable(out_path, "-o")
    refuse_input(out_path, "-o", paths)
    if out_path.exists() and not overwrite:
        raise UsageError(f"-o {out_path} exists; give --overwrite to replace it")


def _write(aside: Path, shards: Sequence[Shard]) -> MergeReport:
    report = _sums(shards)
    with (
        ExitStack() as held,
        h5py.File(aside, "w", libver=LIBVER, locking="best-effort", rdcc_nbytes=0) as file,
    ):
        opened = [held.enter_context(open_results(its.path)) for its in shards]
        listed = [_listed(its) for its in shards]
        parts = number_parts([Columns(its) for its in opened], [len(its) for its in listed])
        copy_tables(file, parts)
        write_layers(file, join_layers(opened))
        write_routing(file, join_routing(opened))
        attrs = _provenance(shards) | _energy(shards)
        attrs["shards"] = [its for of in listed for its in of]
        attrs["fingerprint"] = _fingerprint(shards)
        own = own_attributes(report, shards[0].first_row, shards[0].num_input_rows)
        write_attributes(file, {key: its for key, its in attrs.items() if its is not None} | own)
    return report


def _provenance(shards: Sequence[Shard]) -> dict[str, Any]:
    """The attributes of the first shard that knows its run: one made of journals alone may not."""
    return next((its.attrs for its in shards if its.attrs.get("model")), shards[0].attrs)


def _fingerprint(shards: Sequence[Shard]) -> dict[str, Any]:
    """As a run of all these rows would have, so that such a run knows the file for its own."""
    whole = dict(zip(ROW_FIELDS, (shards[0].first_row, shards[-1].stop_row), strict=True))
    found = msgspec.json.decode(shards[0].attrs["fingerprint"])
    return {key: whole.get(key, its) for key, its in found.items()}


def _sums(shards: Sequence[Shard]) -> MergeReport:
    try:
        counts = [sum(int(its.attrs[name]) for its in shards) for name in _COUNTS]
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"{shards[0].path}: damaged attributes: {error}") from None
    num_rows, num_failed, num_samples, num_duplicates, num_unequal = counts
    return MergeReport(
        num_rows=num_rows,
        num_failed=num_failed,
        num_samples=num_samples,
        num_duplicates=num_duplicates,
        num_unequal=num_unequal,
    )


def _listed(shard: Shard) -> list[dict[str, Any]]:
    """What the joined file says of a file: its own list of shards if it was joined itself."""
    listed = decoded(shard.attrs.get("shards"))
    if isinstance(listed, list) and listed:
        return listed
    slurm = decoded(shard.attrs.get("slurm"))
    job_id = slurm.get("job_id", "") if isinstance(slurm, dict) else ""
    return [
        {
            "file": shard.path.name,
            "first_row": shard.first_row,
            "num_rows": shard.stop_row - shard.first_row,
            "job_id": job_id,
            "created": shard.attrs.get("created", 0),
            "split": shard.attrs.get("split", ""),
        }
    ]


def _energy(shards: Sequence[Shard]) -> dict[str, Any]:
    """The sum of all shards' energy; none where one of them does not tell its own."""
    told = [decoded(its.attrs.get("energy")) for its in shards]
    try:
        joules, tokens = (
            float(np.sum([its[name] for its in told])) for name in ("joules", "tokens")
        )
        sources = sorted({str(source) for its in told for source in its["sources"]})
    except (TypeError, KeyError, ValueError):
        return {"energy": None}
    per_token = joules / tokens if tokens else None
    whole = {"joules": joules, "tokens": int(tokens), "joules_per_token": per_token}
    return {"energy": whole | {"sources": sources}}
