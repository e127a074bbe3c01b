"""Kinds of results files: damaged bytes, and crafted ones that HDF5 finds whole."""

import io
import json
from functools import partial
from pathlib import Path
from random import Random

import h5py
import numpy as np

from janus_hpc.errors import JanusError, JournalError
from janus_hpc.results.batches import decisions, read_batches, table
from janus_hpc.results.export import FORMATS, export
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.stats import BatchStats, LayerStats, PlacementStats, RunStats
from janus_hpc.results.verify import verify
from tests.fuzz.kinds import Kind, rewrite
from tests.fuzz.odd import mutate_bytes
from tests.fuzz.oracle import Finding
from tests.fuzz.run_files import FINGERPRINT, NUM_ROWS, _result
from tests.fuzz.traces import EXPERTS, LAYERS, demo_trace

NAME = "out.h5"


def kinds(folder: Path) -> list[Kind]:
    """Both, with their originals made below `folder`."""
    originals = folder / "results"
    originals.mkdir()
    _write_results(folder, originals / NAME)
    exported = {to: _export(originals / NAME, to) for to in FORMATS}
    read = partial(_read, exported)
    return [
        Kind(name="results", originals=originals, mutate=_damage, read=read),
        Kind(name="results-crafted", originals=originals, mutate=_craft, read=partial(_read, None)),
    ]


def _write_results(folder: Path, out: Path) -> None:
    writer = JournalWriter(folder, 0, 0, FINGERPRINT)
    writer.append_group([_result(row, 1 + row % 9) for row in range(NUM_ROWS)])
    writer.close()
    layers = LayerStats(
        expert_activations=np.ones((LAYERS, EXPERTS)),
        a_max_mean=np.ones(LAYERS),
        a_max_max=np.ones(LAYERS, np.int64),
        num_steps=1,
    )
    slots = np.arange(LAYERS * 2 * 16, dtype=np.int32).reshape(LAYERS, 2, 16) % EXPERTS
    stats = RunStats(
        batches=[
            BatchStats(
                plan="{}",
                split="1a1e",
                exchange="host",
                num_rows=NUM_ROWS,
                num_tokens=9,
                seconds=2.5,
                tpot_s=0.125,
            )
        ],
        layers=layers,
        placements=[PlacementStats(epoch=0, slots_LRC=slots, kind="even", why="", digest="d")],
        routing=demo_trace(),
    )
    attrs = {"model": "demo", "created": 1_790_000_000, "fingerprint": {"seed": 0}}
    merge(folder, out, NUM_ROWS, FINGERPRINT, attrs, stats=stats)


def _damage(rng: Random, folder: Path) -> list[Path]:
    path = folder / NAME
    return [rewrite(path, mutate_bytes(rng, path.read_bytes()))]


def _craft(rng: Random, folder: Path) -> list[Path]:
    """A dataset or attribute replaced through HDF5."""
    path = folder / NAME
    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+") as file:
        if rng.random() < 0.3:
            _craft_attribute(rng, file)
        else:
            _craft_dataset(rng, file)
    return [rewrite(path, image.getvalue())]


def _craft_attribute(rng: Random, file: h5py.File) -> None:
    odd = (0, -1, 2**62, 1.5, np.nan, "x", "{", [1, 2], b"\xff", np.zeros(0), h5py.Empty("f"))
    holder = rng.choice((file, file["rows"], file["samples"], file["routing"]))
    name = rng.choice([*holder.attrs, "new"])
    holder.attrs[name] = odd[rng.randrange(len(odd))]


def _craft_dataset(rng: Random, file: h5py.File) -> None:
    names: list[str] = []
    file.visititems(lambda name, its: names.append(name) if isinstance(its, h5py.Dataset) else None)
    name = rng.choice(names)
    values, digest = np.array(file[name]), file[name].attrs["sha256"]
    del file[name]
    kind = rng.randrange(6)
    if kind == 0:
        return
    if kind == 1:
        file.create_group(name)
        return
    if kind == 2:
        dataset = file.create_dataset(name, (2**40,), values.dtype, chunks=(16,))
    elif kind == 3:
        wrong = values.reshape(-1)[: rng.randrange(values.size + 1)]
        dataset = file.create_dataset(name, data=wrong)
    elif kind == 4:
        dtype = rng.choice(("<i8", "<f8", "<u1", h5py.string_dtype()))
        dataset = file.create_dataset(name, values.shape, dtype)
    else:
        flat = values.reshape(-1)
        if flat.size:
            flat[rng.randrange(flat.size)] = rng.choice((0, 1, 77, 255))
        dataset = file.create_dataset(name, data=values)
    dataset.attrs["sha256"] = digest


def _export(path: Path, to: str) -> bytes:
    out = io.BytesIO()
    export(path, to, out, timing=False)
    return out.getvalue()


def _read(exported: dict[str, bytes] | None, folder: Path) -> None:
    """Every command on the file: damage is found, or what is exported equals the original's."""
    path = folder / NAME
    findings = verify(path).findings
    refusal: JanusError | None = None
    for to in FORMATS:
        try:
            found = _export(path, to)
        except JanusError as error:
            refusal = error
            if NAME not in str(error):
                raise
            continue
        if exported is not None and not findings and found != exported[to]:
            raise Finding(f"verify finds nothing, but the export to {to} differs")
    try:
        batches = read_batches(path)
        json.dumps(batches)
        "\n".join([*table(batches), *decisions(batches)])
    except JanusError as error:
        refusal = error
    if findings:
        raise JournalError(f"{path}: {findings[0]}")
    if refusal is not None:
        raise Finding(f"verify finds nothing, but: {refusal}")
