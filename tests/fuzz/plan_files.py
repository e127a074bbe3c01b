"""Kinds of files that runs and plans are told by: job files, profiles, cost tables, routing traces, demands."""

import io
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from janus_hpc import config
from janus_hpc.comm.costs import ExchangeCosts, LinkCosts, MemoryCosts
from janus_hpc.config import RunConfig, parse_bytes
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.placing import choose_placement, read_fitting_trace
from janus_hpc.engine.prepare import choose_split, read_turns
from janus_hpc.errors import UsageError
from janus_hpc.launch import read_launch
from janus_hpc.models.registry import load_spec
from janus_hpc.plan.make import make_plan
from janus_hpc.plan.request import Request
from janus_hpc.planner.cost_table import CostTable, read_table, write_table
from janus_hpc.planner.exchange_cost import Step, choose_exchange
from janus_hpc.planner.profile_file import read_profile, write_profile
from janus_hpc.routing.storage import write_array
from janus_hpc.routing.trace_file import ROUTING_ARRAYS, write_trace
from janus_hpc.simulate.demand import read_demand
from janus_hpc.topology import Role, Topology
from tests.fuzz.kinds import Kind, rewrite
from tests.fuzz.odd import dump, mutate_bytes, mutate_number, mutate_tree
from tests.fuzz.traces import demo_trace
from tests.unit.planner_profiles import demo_profile

TOML_VALUES = (
    *(
        "0",
        "-1",
        "1",
        "true",
        '""',
        '"a"',
        "1.5",
        "nan",
        "inf",
        "-inf",
        "-0.0",
        "1e400",
        "10000000000000000",
    ),
    *(
        "1000000000000000000000000000000",
        "[]",
        "{}",
        "[1]",
        '["a"]',
        "1979-05-27",
        "07:32:00",
        '"\\u0000"',
    ),
    *(
        '"' + "x" * 300 + '"',
        '"' + "x/" * 3000 + '"',
        '"/dev/null"',
        '"/"',
        '"."',
        "'''a\nb'''",
        "0x10",
        "[" * 1500,
    ),
    *(
        '"1a3e"',
        '"0a1e"',
        '"999999999999a1e"',
        '"1a1e,1a1e"',
        '"\\u00b2a3e"',
        '"-5GB"',
        '"1e400GB"',
        '"nanGB"',
        '"inf"',
    ),
    *(
        '"auto"',
        '"off"',
        '"512MB"',
        '"0"',
        '"1e-9"',
        "9223372036854775807",
        "9223372036854775808",
        "2147483648",
    ),
)
_ROLES = (Role.ATTENTION, Role.EXPERT, Role.ATTENTION, Role.EXPERT)


def kinds(folder: Path) -> list[Kind]:
    """All of them, with their originals made below `folder`."""
    for name in ("job", "profile", "table", "trace", "demand"):
        (folder / name).mkdir()
    (folder / "job" / "job.toml").write_text(_job_text())
    write_profile(folder / "profile" / "profile.json", demo_profile())
    write_table(folder / "table" / "table.json", _table())
    write_trace(folder / "trace" / "trace.h5", demo_trace(), model="demo", created=0)
    rows = "".join(f"{60 * at},{100 + at}\n" for at in range(30))
    (folder / "demand" / "demand.csv").write_text("time_s,rate\n" + rows)
    return [
        Kind(name="job", originals=folder / "job", mutate=_job, read=_read_job, must_name=False),
        Kind(
            name="profile",
            originals=folder / "profile",
            mutate=partial(_json, "profile.json"),
            read=_read_profile,
        ),
        Kind(
            name="cost-table",
            originals=folder / "table",
            mutate=partial(_json, "table.json"),
            read=_read_table,
        ),
        Kind(name="trace", originals=folder / "trace", mutate=_trace, read=_read_trace),
        Kind(name="demand", originals=folder / "demand", mutate=_demand, read=_read_demand),
    ]


def _job_text() -> str:
    """Every key once, with its default where that can be written."""
    values: dict[str, Any] = {"prompts": "prompts.jsonl"}
    known = RunConfig(prompts="prompts.jsonl")
    for name in RunConfig.__struct_fields__:
        values.setdefault(name, getattr(known, name))
    return "".join(
        f"{name} = {json.dumps(its)}\n" for name, its in values.items() if its is not None
    )


def _table() -> CostTable:
    link = LinkCosts(
        across=((1000, 1e-5), (100000, 1e-4)),
        across_busy_s=2e-5,
        node_rate=1e9,
        inside=((1000, 1e-6), (2000, 2e-6)),
    )
    memory = MemoryCosts(copy_rate=1e10, add_rate=1e10, signal_s=1e-6)
    costs = ExchangeCosts(links={"mpi": link}, memory=memory)
    return CostTable(
        made="2026-11-29T00:00:00Z",
        library="MPICH",
        hosts=("a", "a", "b", "b"),
        node_ids=(0, 0, 1, 1),
        costs=costs,
    )


def _json(name: str, rng: Random, folder: Path) -> list[Path]:
    path = folder / name
    data = path.read_bytes()
    if rng.random() < 0.5:
        values = json.loads(data)
        for _ in range(rng.choice((1, 2, 5))):
            values = mutate_number(rng, values)
        return [rewrite(path, json.dumps(values).encode())]
    if rng.random() < 0.7:
        values = json.loads(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            changed = mutate_tree(rng, values)
            values = changed if type(changed) is dict else values
        return [rewrite(path, dump(changed).encode("utf-8", "surrogatepass"))]
    return [rewrite(path, mutate_bytes(rng, data))]


def _job(rng: Random, folder: Path) -> list[Path]:
    path = folder / "job.toml"
    lines = path.read_text().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        names = RunConfig.__struct_fields__
        line = f"{rng.choice(names)} = {rng.choice(TOML_VALUES)}"
        at = next(
            (
                i
                for i, its in enumerate(lines)
                if its.split(" ")[0] == line.split(" ", maxsplit=1)[0]
            ),
            None,
        )
        if at is None or rng.random() < 0.05:
            lines.insert(rng.randrange(len(lines) + 1), line)
        else:
            lines[at] = line
    data = "\n".join(lines).encode()
    return [rewrite(path, mutate_bytes(rng, data) if rng.random() < 0.2 else data)]


def _trace(rng: Random, folder: Path) -> list[Path]:
    path = folder / "trace.h5"
    data = path.read_bytes()
    if rng.random() < 0.4:
        return [rewrite(path, mutate_bytes(rng, data))]
    image = io.BytesIO(data)
    with h5py.File(image, "r+") as file:
        _craft(rng, file)
    return [rewrite(path, image.getvalue())]


def _craft(rng: Random, file: h5py.File) -> None:
    """A file that HDF5 finds whole, with right hashes, that no program of ours has written."""
    group, kind = file["routing"], rng.randrange(6)
    name = rng.choice(list(ROUTING_ARRAYS))
    values = np.array(group[name])
    if kind == 0:
        attribute = rng.choice(("num_experts", "top_k", "schema_version", "schema_name"))
        odd = (0, -1, 1, 5, 10**6, 2**62, 1.5, np.inf, np.nan, "x", [1, 2], b"\xff", np.zeros(0))
        group.attrs[attribute] = odd[rng.randrange(len(odd))]
        return
    del group[name]
    if kind == 1:
        if rng.random() < 0.5:
            group.create_group(name)
        return
    if kind == 2:
        shape = rng.choice(((10**15,), (10**6, 10**6), (2**40, 4, 4), (0,), (0, 10**12), ()))
        chunks = tuple(max(1, min(its, 16)) for its in shape) if all(shape) and shape else None
        dataset = group.create_dataset(name, shape, ROUTING_ARRAYS[name], chunks=chunks)
        dataset.attrs["sha256"] = np.bytes_("0" * 64)
        return
    if kind == 3:
        shapes = [values.shape[::-1], (1, *values.shape), (*values.shape, 1), (values.size,)]
        write_array(group, name, ROUTING_ARRAYS[name], values.reshape(rng.choice(shapes)))
        return
    if kind == 4:
        wrong = values[: rng.randrange(len(values) + 1)] if values.ndim else values
        dtype = rng.choice(("<i4", "<i8", "<f8", "<i2", "S4"))
        write_array(group, name, rng.choice((dtype, ROUTING_ARRAYS[name])), wrong)
        return
    flat = values.reshape(-1)
    limits = np.iinfo(values.dtype)
    flat[rng.randrange(len(flat))] = rng.choice((0, -1, 1, 3, 31, 32, limits.max, limits.min))
    write_array(group, name, ROUTING_ARRAYS[name], values)


def _demand(rng: Random, folder: Path) -> list[Path]:
    path = folder / "demand.csv"
    lines = path.read_text().splitlines()
    odd = (
        "nan",
        "inf",
        "-1",
        "1e400",
        "",
        "x",
        "1,2",
        '"',
        "0x1",
        "1_0",
        "9" * 400,
        "\0",
        "\u0661",
        "a" * 200_000,
    )
    cells = lines[rng.randrange(len(lines))].split(",")
    cells[rng.randrange(2)] = rng.choice(odd)
    lines[rng.randrange(len(lines))] = ",".join(cells)
    data = "\n".join(lines).encode()
    return [rewrite(path, mutate_bytes(rng, data) if rng.random() < 0.5 else data)]


def _read_job(folder: Path) -> None:
    """As a run does before it looks at a file."""
    its = config.load(folder / "job.toml", {})
    spec = load_spec(demo_model_dir())
    choose_split(its.split, spec, 4)
    read_turns(its, spec, (0, 0, 1, 1))
    if its.kv_memory != "auto":
        parse_bytes(its.kv_memory, "--kv-memory")
    choose_placement(its, spec, (0, 1), 1 << 33, 4)


def _read_profile(folder: Path) -> None:
    # The user's own, where the library for a_max is built once for all cases.
    cache = read_launch().cache_dir
    path = folder / "profile.json"
    read_profile(path)
    # That no plan of 8 ranks fits is an answer.
    with suppress(UsageError):
        request = Request(profile=str(path), ranks=8, context=64.0)
        json.dumps(make_plan(request, cache).record)


def _read_table(folder: Path) -> None:
    table = read_table(folder / "table.json")
    topology = Topology(
        roles=_ROLES, node_ids=(0, 0, 1, 1), hosts=("a", "a", "b", "b"), local_ranks=(0, 1, 0, 1)
    )
    step = Step(num_tokens=[64, 64], row_bytes=512, hidden=128, chunk_bytes=1 << 16)
    if "mpi" in table.costs.links:
        choose_exchange(topology, step, table.costs, "mpi")


def _read_trace(folder: Path) -> None:
    spec = load_spec(demo_model_dir())
    path = folder / "trace.h5"
    trace = read_fitting_trace(str(path), spec)
    asked = RunConfig(prompts="x", placement_from=str(path))
    choose_placement(asked, spec, (0, 0), 1 << 33, 4, trace)


def _read_demand(folder: Path) -> None:
    read_demand(folder / "demand.csv").hours()
