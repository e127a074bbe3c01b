"""`janus-hpc bench plan`: the options, checked before anything heavy is imported."""

from pathlib import Path
from typing import Any

import click

from janus_hpc import config
from janus_hpc.bench.command_parts import sizes, write_records
from janus_hpc.cli_world import start_world
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.models.shapes import shape_config
from janus_hpc.planner.a_max_lookup import traced_routing, uniform_routing
from janus_hpc.planner.profile_data import shape_of
from janus_hpc.planner.profile_file import check_model, read_profile
from janus_hpc.routing.trace_file import check_fits, read_trace


@click.command()
@click.option(
    "--profile", "path", required=True, type=click.Path(path_type=Path), help="of these ranks"
)
@click.option("--shape", default="moe-211m", help="named shape with random weights [moe-211m]")
@click.option(
    "--model", "model_dir", type=click.Path(path_type=Path), help="a model folder instead"
)
@click.option("--splits", default="colocated", help="e.g. colocated,1a3e,2a2e")
@click.option("--batch", default="1,8,32,128", help="batch sizes")
@click.option("--prompt-tokens", default=32, type=click.IntRange(1), help="prompt length")
@click.option("--new-tokens", default=32, type=click.IntRange(2), help="answer length")
@click.option("--repeats", default=3, type=click.IntRange(1), help="timed runs, the median counts")
@click.option("--trace", type=click.Path(path_type=Path), help="routing trace [uniform routing]")
@click.option("--microbatches", default="1", type=click.Choice(["auto", "1", "2", "3", "4"]))
@click.option("--slots", default=0, type=click.IntRange(0), help="as for infer")
@click.option("--json", "json_path", default="-", help="where the records go; - is standard output")
@click.pass_obj
def plan(env: LaunchEnv, /, path: Path, **given: Any) -> int:
    """Predicted against measured time of decode steps for splits and batch sizes."""
    profile = read_profile(path)
    model_dir: Path | None = given["model_dir"]
    values = ConfigFile.load(model_dir).values if model_dir else shape_config(given["shape"])
    spec = spec_of(ConfigFile(model_dir or Path("shape"), values))
    itemsize = profile.model.row_bytes // profile.model.hidden
    check_model(profile, path, shape_of(spec, profile.model.dtype, itemsize, given["shape"]))
    routing = uniform_routing(spec.moe.num_experts, spec.moe.top_k)
    if given["trace"]:
        trace = read_trace(given["trace"])
        check_fits(
            trace,
            given["trace"],
            num_experts=spec.moe.num_experts,
            top_k=spec.moe.top_k,
            layer_ids=spec.sparse_layers,
        )
        routing = traced_routing(trace, str(given["trace"]))
    batches = sizes(given["batch"], "--batch")
    names = ("microbatches", "slots")
    run = config.load(None, {"prompts": ""} | {name: given[name] for name in names})
    world = start_world(env)

    from janus_hpc.bench.e2e import E2eOptions
    from janus_hpc.bench.plan import run_plan
    from janus_hpc.comm.guard import guard

    with guard(world):
        records = run_plan(
            world,
            env,
            E2eOptions(
                config_values=values,
                model_dir=model_dir,
                batches=batches,
                splits=given["splits"].split(","),
                num_prompt_tokens=given["prompt_tokens"],
                num_new_tokens=given["new_tokens"],
                repeats=given["repeats"],
                peer=False,
                run=run,
            ),
            profile,
            routing,
        )
        if world.world_rank == 0:
            write_records(records, given["json_path"])
    return 0
