"""A batch script that runs a plan, and a map of its ranks. Knows sbatch and srun; slurm/janus.sbatch is its pattern."""

import math
import shlex
from pathlib import Path

from janus_hpc.config import RunConfig
from janus_hpc.errors import UsageError
from janus_hpc.plan.lengths import demo_if_planned
from janus_hpc.plan.make import Plan
from janus_hpc.planner.replan import Choice, choice_at
from janus_hpc.planner.system import KINDS
from janus_hpc.topology import Split, assign_roles

SCRIPT_NAME, MAP_NAME = "janus-plan.sbatch", "ranks.txt"
# A job that is stopped at its limit resumes, at the price of another wait in the queue.
_TIME_MARGIN, _TIME_SPARE_S = 1.5, 300
_TIME_UNKNOWN = "01:00:00"

_SCRIPT = """\
#!/bin/bash
# {headline}
# Written by janus-hpc plan: sbatch {script_name}{argument_hint}
# Its ranks are in {map_name}; further arguments of `janus-hpc infer` may follow on sbatch's line, and win.
#SBATCH --job-name=janus-plan
#SBATCH --nodes={num_nodes}
#SBATCH --ntasks={num_ranks}
#SBATCH --ntasks-per-node={per_node}
{resources}#SBATCH --time={time}
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail
# The batch script is copied to a spool folder; the working folder is where sbatch was called.
cd "${{SLURM_SUBMIT_DIR:-.}}"
[ -n "${{VIRTUAL_ENV:-}}" ] || [ ! -f .venv/bin/activate ] || source .venv/bin/activate

{prompts}
step=(
    # MPICH's ranks speak pmi2, Open MPI's pmix; JANUS_MPI picks what the site has.
    --mpi="${{JANUS_MPI:-pmi2}}"
    # Nodes are filled in turn, as in {map_name}.
    --distribution=block:block,Pack
    # Ranks end together with one exit code; a rank that dies alone still ends the step, by --wait seconds.
    --kill-on-bad-exit=0 --wait=30
    --unbuffered
)
{bind}# srun does not inherit sbatch's --cpus-per-task.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
exec srun "${{step[@]}}" janus-hpc infer {options} "${{args[@]}}"
"""

# Where the plan names no folder, whoever submits does.
_MODEL = '--model "${JANUS_MODEL:?set it to the folder of the model}"'
_DEMO_PROMPTS = """\
args=("$@")
if [ ${#args[@]} -eq 0 ]; then
    args=("$(python3 -c 'from janus_hpc.demo import demo_model_dir; print(demo_model_dir() / "prompts.jsonl")')")
fi
"""


def emit_slurm(plan: Plan, folder: Path, overwrite: bool) -> list[Path]:
    """Write both files, and return their paths. UsageError where they exist or cannot be written, and for
    ranks that are not alike: those need a heterogeneous job.
    """
    if not plan.system.is_uniform:
        raise UsageError(
            "--emit slurm: roles with different hardware need a heterogeneous job, which is not written yet; "
            "plan with one --profile"
        )
    contents = {SCRIPT_NAME: script(plan), MAP_NAME: rank_map(plan)}
    paths = [folder / name for name in contents]
    for path in paths:
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; choose another folder with -o, or give --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, contents.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        paths[0].chmod(0o755)
    except OSError as error:
        raise UsageError(f"-o {folder}: cannot be written: {error.strerror}") from error
    return paths


def script(plan: Plan) -> str:
    """The batch script's text."""
    request, split = plan.request, _split(plan)
    per_node = min(split.world_size, plan.system.node_size)
    asks_prompts = request.prompts is None
    return _SCRIPT.format(
        headline=plan.text.splitlines()[0],
        script_name=SCRIPT_NAME,
        argument_hint=" [PROMPTS.jsonl]" if asks_prompts else "",
        map_name=MAP_NAME,
        num_nodes=-(-split.world_size // plan.system.node_size),
        num_ranks=split.world_size,
        per_node=per_node,
        resources=_resources(plan, per_node),
        time=_time_limit(plan),
        prompts=_DEMO_PROMPTS if asks_prompts else f'args=({_quoted(request.prompts)} "$@")\n',
        bind=_bind(plan),
        options=" ".join(_options(plan)),
    )


def rank_map(plan: Plan) -> str:
    """World rank, node, local rank and role of every rank: what `infer` does on nodes filled in turn."""
    split, size = _split(plan), plan.system.node_size
    nodes = [world_rank // size for world_rank in range(split.world_size)]
    lines = [f"# {split}: world_rank node local_rank role"]
    for world_rank, role in enumerate(assign_roles(split, nodes)):
        lines.append(f"{world_rank} {nodes[world_rank]} {world_rank % size} {role}")
    return "\n".join(lines) + "\n"


def _choice(plan: Plan) -> Choice:
    assert plan.decision.chosen is not None
    return choice_at(plan.decision.judged, plan.decision.chosen)


def _split(plan: Plan) -> Split:
    """Of the ranks that the job gets: those the plan needs, whatever could be held beside them."""
    choice = _choice(plan)
    return choice.split(int(choice.grid().num_ranks()[0]))


def _options(plan: Plan) -> list[str]:
    """What makes `janus-hpc infer` run as planned."""
    request, choice, at = plan.request, _choice(plan), plan.decision.chosen
    judged = plan.decision.judged
    kind = KINDS[int(judged.times.kind[at])]
    values = {
        "--split": str(_split(plan)),
        "--slots": choice.num_slots,
        "--microbatches": choice.microbatches,
        "--max-sequences": max(math.ceil(int(judged.batch[at]) / choice.num_attention), 1),
        "--max-step-tokens": plan.system.max_step_tokens,
        "--balance": request.balance,
        "--gate": request.gate,
        "--max-tokens": request.max_tokens,
    }
    if kind != "node":
        values["--exchange"] = kind
    if request.model is not None:
        values["--model"] = request.model.resolve()
        values["--dtype"] = request.dtype
    if request.trace is not None:
        values["--placement-from"] = request.trace.resolve()
    if Path(request.profile).is_file():
        values["--profile"] = Path(request.profile).resolve()
    known = RunConfig.__struct_fields__
    assert all(name[2:].replace("-", "_") in known for name in values), f"{values=}"
    options = [f"{name} {_quoted(value)}" for name, value in values.items()]
    if request.model is None and demo_if_planned(plan.system.attention.model) is None:
        options.append(_MODEL)
    return options


def _resources(plan: Plan, per_node: int) -> str:
    hardware = plan.system.attention.hardware
    if hardware.device == "cuda":
        return f"#SBATCH --gpus-per-node={per_node}\n"
    if hardware.cores_per_node:
        return f"#SBATCH --cpus-per-task={max(hardware.cores_per_node // per_node, 1)}\n"
    return ""


def _bind(plan: Plan) -> str:
    """Ranks of a node reach into each other's GPU memory, so each must see all of them."""
    return "step+=(--gpu-bind=none)\n" if plan.system.attention.hardware.device == "cuda" else ""


def _time_limit(plan: Plan) -> str:
    """The predicted end with a margin, in whole minutes; an hour where no rows are known."""
    judged, at = plan.decision.judged, plan.decision.chosen
    if judged.job_s is None:
        return _TIME_UNKNOWN
    minutes = math.ceil((_TIME_MARGIN * float(judged.job_s[at]) + _TIME_SPARE_S) / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _quoted(value: object) -> str:
    path = value.resolve() if isinstance(value, Path) else value
    return shlex.quote(str(path))
