"""`janus-hpc model`: look at model folders, and make one with random weights. No MPI."""

import json
from pathlib import Path

import click

from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import ignored_tensors, load_spec
from janus_hpc.models.shapes import shape_config
from janus_hpc.models.spec import GqaSpec
from janus_hpc.weights.quantization import read_fp8_blocks


@click.group()
def model() -> None:
    """Look at model folders, or make one."""


@model.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--check/--no-check", default=True, help="compare the tensor headers, too")
def inspect(model_dir: Path, check: bool) -> None:
    """Print a model's shape as JSON, after checking every tensor's presence and shape."""
    spec = load_spec(model_dir)
    if check:
        from janus_hpc.weights.checkpoint import Checkpoint

        with Checkpoint(model_dir) as checkpoint:
            checkpoint.check(spec.all_tensors(), ignored_tensors(spec))
    moe, blocks = spec.moe, read_fp8_blocks(model_dir)
    shape = {
        "architecture": spec.architecture,
        "attention": "gqa" if isinstance(spec.attention, GqaSpec) else "mla",
        "layers": spec.num_layers,
        "sparse_layers": len(spec.sparse_layers),
        "hidden": spec.hidden,
        "vocabulary": spec.vocab,
        "context": spec.max_context,
        "experts": moe.num_experts,
        "experts_per_token": moe.top_k,
        "scoring": moe.scoring,
        "expert_width": moe.width,
        "dtype": spec.stored_dtype,
        "fp8_blocks": None if blocks is None else [blocks.rows, blocks.columns],
        "attention_parameters": spec.num_attention_params(),
        "expert_parameters": spec.num_expert_params(),
        "kv_numbers_per_token": spec.attention.kv_width() * spec.num_layers,
    }
    click.echo(json.dumps(shape, indent=1))


@model.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--shape", default="moe-211m", help="a named shape [moe-211m]")
@click.option(
    "--config", "config_dir", type=click.Path(path_type=Path), help="a folder with config.json"
)
@click.option("--seed", default=0, type=click.IntRange(0), help="of the weights [0]")
@click.option(
    "--skew", default=0.0, type=click.FloatRange(0), help="Zipf exponent of the routing [0]"
)
def make(model_dir: Path, shape: str, config_dir: Path | None, seed: int, skew: float) -> None:
    """Write a model with random weights, for measurements; it has no tokenizer."""
    values = shape_config(shape) if config_dir is None else ConfigFile.load(config_dir).values

    from janus_hpc.models.make import make_model

    num_weights = make_model(model_dir, values, seed, skew)
    click.echo(f"{model_dir}: {num_weights} weights")
