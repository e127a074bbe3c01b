"""A batch script that runs a plan, and a map of its ranks: sizes, options and places. The text is `slurm_text`'s."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from janus_hpc.config import RunConfig, load_job
from janus_hpc.errors import UsageError
from janus_hpc.plan.lengths import demo_if_planned
from janus_hpc.plan.make import Plan
from janus_hpc.plan.slurm_text import (
    COME_BACK,
    COMPONENT,
    DEMO_PROMPTS,
    HETJOB,
    PREPARE,
    RUN,
    RUN_HETJOB,
    SCRIPT,
)
from janus_hpc.planner.profile_data import Hardware
from janus_hpc.planner.replan import Choice, choice_at
from janus_hpc.planner.system import KINDS
from janus_hpc.topology import Split, assign_roles

SCRIPT_NAME, MAP_NAME = "janus-plan.sbatch", "ranks.txt"
# A job that is stopped at its limit resumes, at the price of another wait in the queue.
_TIME_MARGIN, _TIME_SPARE_S = 1.5, 300
_TIME_UNKNOWN = "01:00:00"

# Where the plan names no folder, whoever submits does.
_MODEL = '--model "${JANUS_MODEL:?set it to the folder of the model}"'


def emit_slurm(plan: Plan, folder: Path, overwrite: bool) -> list[Path]:
    """Write both files, and return their paths. UsageError where they exist or cannot be written.

    Roles on different hardware become the two components of a heterogeneous job.
    """
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
    components, time = _components(plan), _time_limit(plan)
    headers = [
        COMPONENT.format(
            num_nodes=its.num_nodes,
            num_ranks=its.num_ranks,
            per_node=its.per_node,
            resources=its.resources,
            time=time,
        )
        for its in components
    ]
    request = plan.request
    asks_prompts = request.prompts is None and request.job is None
    return SCRIPT.format(
        headline=plan.text.splitlines()[0],
        script_name=SCRIPT_NAME,
        argument_hint=" [PROMPTS.jsonl]" if request.prompts is None else "",
        map_name=MAP_NAME,
        components=headers[0] if len(headers) == 1 else _hetjob(plan, headers),
        prompts=DEMO_PROMPTS if asks_prompts else _arguments(plan),
        options=" ".join(_options(plan)),
        prepare=PREPARE,
        run=_run(components),
        come_back=COME_BACK,
    )


def rank_map(plan: Plan) -> str:
    """World rank, node, local rank and role of every rank: what `infer` does on nodes filled in turn."""
    split = _split(plan)
    places = [place for its in _components(plan) for place in its.places]
    nodes = [node for node, _ in places]
    lines = [f"# {split}: world_rank node local_rank role"]
    for world_rank, role in enumerate(assign_roles(split, nodes)):
        node, local_rank = places[world_rank]
        lines.append(f"{world_rank} {node} {local_rank} {role}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Component:
    """Ranks on nodes of one kind: all of a job, or one component of a heterogeneous job."""

    num_ranks: int
    node_size: int
    first_node: int
    hardware: Hardware

    @property
    def num_nodes(self) -> int:
        return -(-self.num_ranks // self.node_size)

    @property
    def per_node(self) -> int:
        return min(self.num_ranks, self.node_size)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Node and local rank of every rank, nodes filled in turn."""
        size = self.node_size
        return [(self.first_node + rank // size, rank % size) for rank in range(self.num_ranks)]

    @property
    def resources(self) -> str:
        """Lines of sbatch's header."""
        if self.hardware.device == "cuda":
            return f"#SBATCH --gpus-per-node={self.per_node}\n"
        return f"#SBATCH --cpus-per-task={self._num_cores}\n" if self._num_cores else ""

    def sizes(self, variable: str) -> str:
        """Options of srun; `variable` is what sbatch's own is told by. srun does not inherit
        --cpus-per-task, and ranks of a node reach into each other's GPU memory, so each must see all of them.
        """
        if self.hardware.device == "cuda":
            return " --gpu-bind=none"
        return f' --cpus-per-task="${{{variable}:-{self._num_cores}}}"' if self._num_cores else ""

    @property
    def _num_cores(self) -> int:
        """Of a rank; 0 where unknown."""
        cores = self.hardware.cores_per_node
        return max(cores // self.per_node, 1) if cores else 0


def _components(plan: Plan) -> list[_Component]:
    """One, or attention and experts where these are on different hardware."""
    split, system = _split(plan), plan.system
    if system.is_uniform:
        hardware = system.attention.hardware
        return [_component(plan, split.world_size, hardware, first_node=0)]
    attention = _component(plan, split.num_attention, system.attention.hardware, first_node=0)
    first_node = attention.num_nodes
    return [
        attention,
        _component(plan, split.num_expert, system.experts.hardware, first_node=first_node),
    ]


def _component(plan: Plan, num_ranks: int, hardware: Hardware, *, first_node: int) -> _Component:
    size = plan.system.ranks_per_node or hardware.ranks_per_node
    return _Component(num_ranks=num_ranks, node_size=size, first_node=first_node, hardware=hardware)


def _hetjob(plan: Plan, headers: list[str]) -> str:
    system = plan.system
    return HETJOB.format(
        attention=system.attention.hardware.name,
        experts=system.experts.hardware.name,
        script_name=SCRIPT_NAME,
        first=headers[0],
        second=headers[1],
    )


def _run(components: list[_Component]) -> str:
    name = "SLURM_CPUS_PER_TASK"
    if len(components) == 1:
        return RUN.replace("{sizes}", components[0].sizes(name))
    first, second = (its.sizes(f"{name}_HET_GROUP_{at}") for at, its in enumerate(components))
    return RUN_HETJOB.replace("{first}", first).replace("{second}", second)


def _arguments(plan: Plan) -> str:
    prompts = plan.request.prompts
    named = "" if prompts is None or plan.request.job is not None else f"{_quoted(prompts)} "
    return f'args=({named}"$@")\n'


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
    if request.job is not None:
        values["--job"] = request.job.resolve()
    if kind != "node":
        values["--exchange"] = kind
    if request.model is not None:
        values["--model"] = request.model.resolve()
        values["--dtype"] = request.dtype
    if request.trace is not None:
        values["--placement-from"] = request.trace.resolve()
    if Path(request.profile).is_file():
        values["--profile"] = Path(request.profile).resolve()
    known = (*RunConfig.__struct_fields__, "job")
    assert all(name[2:].replace("-", "_") in known for name in values), f"{values=}"
    options = [f"{name} {_quoted(value)}" for name, value in values.items()]
    names_model = request.job is not None and load_job(request.job)[0].model is not None
    if (
        request.model is None
        and not names_model
        and demo_if_planned(plan.system.attention.model) is None
    ):
        options.append(_MODEL)
    return options


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
