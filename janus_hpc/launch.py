"""What the launcher (Slurm, hydra, Open MPI, PMI, PMIx) told this process, read once from the
environment.

The only reader of the environment in the package; imports neither torch nor MPI, so it can run
before both.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from janus_hpc.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """One row of the table: the variables a launcher sets. The first row whose `marks` are all set
    wins.
    """

    name: str
    marks: tuple[str, ...]
    world_rank: str
    world_size: str = ""
    local_rank: str = ""
    num_local: str = ""


# MPI launchers stand before Slurm: under `mpirun` inside a job the Slurm variables describe
# mpirun's own helpers. Slurm is known by SLURM_STEP_ID, since SLURM_PROCID and SLURM_NTASKS are
# also set in a batch script outside srun.
_LAUNCHERS = (
    _Launcher(
        name="openmpi",
        marks=("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        world_rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        num_local="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        name="mvapich",
        marks=("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
        world_rank="MV2_COMM_WORLD_RANK",
        world_size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        num_local="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        name="hydra",
        marks=("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        world_rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        num_local="MPI_LOCALNRANKS",
    ),
    _Launcher(
        name="slurm",
        marks=("SLURM_STEP_ID", "SLURM_PROCID"),
        world_rank="SLURM_PROCID",
        world_size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
    ),
    _Launcher(
        name="pmi", marks=("PMI_RANK", "PMI_SIZE"), world_rank="PMI_RANK", world_size="PMI_SIZE"
    ),
    _Launcher(name="pmix", marks=("PMIX_RANK",), world_rank="PMIX_RANK"),
)

# Turns of GNU OpenMP's waiting loop, some 10 to 40 ns each.
_SPIN_COUNT = "5000"

_SLURM_FIELDS = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_CLUSTER_NAME",
    "SLURM_STEP_ID",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_GPUS",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_SUBMIT_DIR",
)

# What else decides how a run goes, for `doctor`: other libraries read these, this package does not.
_SETTINGS = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_VISIBLE_DEVICES",
    "HDF5_USE_FILE_LOCKING",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY",
    "ROCR_VISIBLE_DEVICES",
    "SLURM_CPUS_ON_NODE",
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPU_BIND",
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_TASKS_PER_NODE",
    "SLURM_TRES_BIND",
)


@dataclass(frozen=True, kw_only=True)
class LaunchEnv:
    """Who this process is by its launcher's word; MPI has the last word (`check_world` compares
    them).

    `launcher` is a name of the table or "none". `num_cpus` counts the CPUs this process may run on.
    `is_profiled`: Nsight Systems watches this process. `job_end_unix_s`: when Slurm will end the
    job, None where it does not say. `slurm` holds the job's fields for provenance, lower case
    without the prefix; {} outside Slurm. `ucx_settings` are the UCX_* variables, `settings` those
    that other libraries and Slurm read, by their own names.
    """

    launcher: str = "none"
    world_rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    num_local: int | None = None
    job_id: str = ""
    omp_threads: int | None = None
    job_end_unix_s: float | None = None
    is_profiled: bool = False
    num_cpus: int = 1
    cache_dir: Path = Path()
    slurm: dict[str, str] = field(default_factory=dict)
    ucx_settings: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads a rank uses, and why; `oversubscribed` when a node has more ranks than cores."""

    num_threads: int
    oversubscribed: bool
    why: str


def read_launch(environ: Mapping[str, str] | None = None) -> LaunchEnv:
    """Read the launcher's variables; `environ` is the process's own unless given. UsageError on a
    malformed value.
    """
    environ = os.environ if environ is None else environ
    found = next((row for row in _LAUNCHERS if all(environ.get(m) for m in row.marks)), None)
    world_rank = (found and _number(environ, found.world_rank)) or 0
    slurm = {f.removeprefix("SLURM_").lower(): environ[f] for f in _SLURM_FIELDS if f in environ}
    return LaunchEnv(
        launcher=found.name if found else "none",
        world_rank=world_rank,
        # A launcher that tells no size (PMIx alone) has at least as many processes as this rank
        # implies.
        world_size=(found and _number(environ, found.world_size)) or world_rank + 1,
        local_rank=_number(environ, found.local_rank) if found else None,
        num_local=_number(environ, found.num_local) if found else None,
        job_id=environ.get("SLURM_JOB_ID", ""),
        omp_threads=_omp_threads(environ),
        is_profiled="NSYS_PROFILING_SESSION_ID" in environ,
        job_end_unix_s=_number(environ, "SLURM_JOB_END_TIME"),
        num_cpus=len(os.sched_getaffinity(0)),
        cache_dir=_cache_dir(environ),
        slurm=slurm,
        ucx_settings={name: value for name, value in environ.items() if name.startswith("UCX_")},
        settings={name: environ[name] for name in _SETTINGS if name in environ},
    )


def limit_openmp_spinning() -> None:
    """Make idle OpenMP threads sleep after about 0.1 ms instead of milliseconds, unless the user
    has set GOMP_SPINCOUNT or OMP_WAIT_POLICY. To be called before torch is imported.

    A thread that spins while others want its core costs a time slice a parallel region: measured
    8 ms instead of 0.05 ms a matrix product with 2 threads on 2 shared cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def check_world(env: LaunchEnv, world_size_seen_by_mpi: int, mpi_library: str) -> None:
    """UsageError when a launcher started several processes and MPI in this one sees only itself."""
    if world_size_seen_by_mpi > 1 or env.world_size <= 1:
        return
    raise UsageError(
        f"{env.launcher} started {env.world_size} processes, but MPI in this one (world rank "
        f"{env.world_rank}) sees only itself: the launcher belongs to another MPI library than the "
        f"one loaded here, {mpi_library.splitlines()[0].strip()!r}. Start with the mpirun of that "
        "library (with the pip packages: the one beside this python), or under Slurm with an "
        "`srun --mpi=...` it speaks (`srun --mpi=list`; pmi2 for MPICH, pmix for Open MPI)."
    )


def threads_per_rank(env: LaunchEnv, num_cores_of_node: int, ranks_on_node: int) -> Threads:
    """Threads a rank uses: a set OMP_NUM_THREADS wins, else the node's cores over its ranks, at
    least one.
    """
    assert num_cores_of_node > 0 and ranks_on_node > 0, f"{num_cores_of_node=} {ranks_on_node=}"
    oversubscribed = ranks_on_node > num_cores_of_node
    if env.omp_threads is not None:
        why = f"OMP_NUM_THREADS={env.omp_threads}"
        return Threads(num_threads=env.omp_threads, oversubscribed=oversubscribed, why=why)
    why = f"{num_cores_of_node} cores / {ranks_on_node} ranks of one role on this node"
    if oversubscribed:
        why += ": more ranks than cores, so ranks take turns"
    num_threads = max(1, num_cores_of_node // ranks_on_node)
    return Threads(num_threads=num_threads, oversubscribed=oversubscribed, why=why)


def _number(environ: Mapping[str, str], name: str, least: int = 0) -> int | None:
    """The variable as an integer of at least `least`; None when unset, empty or nameless."""
    text = environ.get(name, "").strip() if name else ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise UsageError(f"environment variable {name}: expected a number >= {least}, got {text!r}")
    return int(text)


def _omp_threads(environ: Mapping[str, str]) -> int | None:
    # OpenMP allows a list, one entry a nesting level; the outermost one is what torch uses.
    outermost = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return _number({"OMP_NUM_THREADS": outermost}, "OMP_NUM_THREADS", least=1)


def _cache_dir(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "janus-hpc"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".cache" / "janus-hpc"
