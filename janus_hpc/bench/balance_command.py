"""`janus-hpc bench balance`: the options, checked before anything heavy is imported."""

from typing import Any

import click

from janus_hpc.bench.command_parts import device_and_ops, names, sizes, write_records
from janus_hpc.launch import LaunchEnv


@click.command()
@click.option("--experts", default=160, type=click.IntRange(1), help="experts a layer [160]")
@click.option("--top-k", default=6, type=click.IntRange(1), help="choices a token [6]")
@click.option("--slots", default=27, type=click.IntRange(1), help="slots an expert rank [27]")
@click.option("--expert-ranks", default="6,8,12,16", help="numbers of expert ranks [6,8,12,16]")
@click.option("--batch", default="16,64,256", help="tokens a pass [16,64,256]")
@click.option("--routing", default="uniform", help="uniform, zipf:S or trace:FILE [uniform]")
@click.option("--layer", default=0, type=click.IntRange(0), help="of the trace, from 0 [0]")
@click.option("--policies", help="of aebs, greedy, eplb, random, first [all]")
@click.option(
    "--placement",
    default="dealt",
    type=click.Choice(["dealt", "random", "contiguous", "janus", "eplb"]),
    help="dealt: replicas in id order to the ranks in turn [dealt]",
)
@click.option("--draws", default=200, type=click.IntRange(2), help="batches drawn [200]")
@click.option("--seed", default=0, type=click.IntRange(0), help="of the draws [0]")
@click.option(
    "--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), help="where to decide"
)
@click.option("--json", "json_path", default="-", help="where the records go; - is standard output")
@click.pass_obj
def balance(env: LaunchEnv, /, **given: Any) -> int:
    """Activated experts of the fullest rank under each policy, beside the optimum, and a decision's time."""
    expert_ranks = sizes(given["expert_ranks"], "--expert-ranks")
    batches = sizes(given["batch"], "--batch")
    if env.world_rank:
        return 0

    from janus_hpc.bench.balance import BalanceOptions, run_balance
    from janus_hpc.kernels.assign import POLICIES

    known = names(given["policies"] or ",".join(POLICIES), "--policies", POLICIES)
    options = BalanceOptions(
        num_experts=given["experts"],
        top_k=given["top_k"],
        num_slots=given["slots"],
        expert_ranks=expert_ranks,
        batches=batches,
        routing=given["routing"],
        layer=given["layer"],
        policies=known,
        placement=given["placement"],
        num_draws=given["draws"],
        seed=given["seed"],
    )
    device, ops = device_and_ops(given["device"], env, 1)
    records = run_balance(ops, device, options)
    if any(record["mean_exact"] is None for record in records):
        click.echo("scipy is not installed: mean_exact is null", err=True)
    write_records(records, given["json_path"])
    return 0
