"""The two kinds of simulation put together: policies over a demand, and policies at fixed batch sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from janus_hpc.errors import UsageError
from janus_hpc.planner.policies import Inputs, Policy, make_policies
from janus_hpc.simulate.capacity import Capacity
from janus_hpc.simulate.demand import KINDS, Demand, built_in, read_demand
from janus_hpc.simulate.fixed_batch import batch_table, fixed_batch
from janus_hpc.simulate.inputs import Setting, make_inputs
from janus_hpc.simulate.plot import plot
from janus_hpc.simulate.report import as_record, text_table
from janus_hpc.simulate.timeline import Rules, play

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A report in words and as data, and how to draw it into a file."""

    text: str
    record: dict[str, Any]
    draw: Callable[[Path], None]


def run_demand(given: Options, cache_dir: Path) -> Made:
    """Every policy over the demand. Errors: UsageError for options that do not fit."""
    inputs, policies = _policies(given, cache_dir)
    demand = _demand(given)
    rules = Rules(
        slo_s=inputs.slo_s,
        moves_from=given["move_cost"],
        least_saving=given["least_saving"],
        lag=given["lag"],
        headroom=given["headroom"],
    )
    most = given["max_pods"] or given["max_ranks"]
    timelines = [
        play(Capacity(policy, inputs.slo_s, given["max_ranks"], most), demand, rules)
        for policy in policies.values()
    ]
    title = f"{_title(inputs)}\n{demand.name}, {demand.hours():g} h"
    return Made(
        text=f"{title}\n{text_table(timelines)}",
        record=as_record(_settings(given, inputs, demand.name), timelines),
        draw=partial(plot, demand=demand, timelines=timelines, title=title),
    )


def run_batches(given: Options, cache_dir: Path) -> Made:
    """Every policy at every batch size. Errors: UsageError for options that do not fit."""
    inputs, policies = _policies(given, cache_dir)
    records = fixed_batch(policies, _batches(given["batches"]), inputs.slo_s)
    return Made(
        text=f"{_title(inputs)}\n{batch_table(records, list(policies))}",
        record={"settings": _settings(given, inputs, ""), "batches": records},
        draw=lambda path: None,
    )


def _policies(given: Options, cache_dir: Path) -> tuple[Inputs, dict[str, Policy]]:
    setting = Setting(**{its.name: given[its.name] for its in fields(Setting)})
    inputs = make_inputs(setting, cache_dir)
    wanted = dict.fromkeys(its.strip() for its in given["policies"].split(","))
    return inputs, make_policies(inputs, list(wanted))


def _demand(given: Options) -> Demand:
    if given["demand"] not in KINDS:
        if not Path(given["demand"]).is_file():
            raise UsageError(
                f"--demand {given['demand']!r} is no file, and none of {', '.join(KINDS)}"
            )
        return read_demand(Path(given["demand"]))
    if given["mean_rate"] is None:
        raise UsageError(f"--demand {given['demand']} needs --mean-rate, in tokens/s")
    return built_in(
        given["demand"],
        mean_rate=given["mean_rate"],
        peak_ratio=given["peak_ratio"],
        hours=given["hours"],
        interval_s=given["interval_min"] * 60,
        seed=given["seed"],
    )


def _batches(text: str) -> list[int]:
    try:
        found = [int(its) for its in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--batches {text!r}: expected numbers such as 64,256") from error
    if min(found) < 1:
        raise UsageError(f"--batches {text!r}: expected numbers from 1 on")
    return found


def _title(inputs: Inputs) -> str:
    profile = inputs.profile
    where = f"{profile.model.name} on {profile.hardware.name} ({profile.basis})"
    how = inputs.routing.why if inputs.library else f"{inputs.routing.why}, bounds: no C library"
    return f"{where}, {inputs.slo_s * 1e3:g} ms a token, context {inputs.context.mean:g}, {how}"


def _settings(given: Options, inputs: Inputs, demand: str) -> dict[str, Any]:
    plain = {key: str(its) if isinstance(its, Path) else its for key, its in given.items()}
    profile = inputs.profile
    sources = list(profile.sources)
    return plain | {"demand_is": demand, "basis": profile.basis, "sources": sources}
