"""Launch variables as the launchers really set them, the wrong-MPI check and the threads rule."""

import subprocess
import sys
from pathlib import Path

import pytest

from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv, check_world, read_launch, threads_per_rank

HOME = {"HOME": "/home/u"}
HYDRA = {
    "HYDI_CONTROL_FD": "7",
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "1",
    "PMI_FD": "9",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "812",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_RESTART_COUNT": "1",
}
SRUN = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
# mpirun inside a job starts one helper a node by srun; the ranks inherit the helper's variables.
SRUN_HELPER = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "launcher", "num_local"),
    [
        (HYDRA, "hydra", 2),
        (OPEN_MPI, "openmpi", 2),
        (SRUN, "slurm", None),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, "slurm", None),
        (SRUN_HELPER | HYDRA, "hydra", 2),
        (SRUN_HELPER | OPEN_MPI, "openmpi", 2),
    ],
)
def test_every_launcher_tells_the_same(
    environ: dict[str, str], launcher: str, num_local: int | None
) -> None:
    env = read_launch(HOME | environ)
    assert (env.launcher, env.world_rank, env.world_size) == (launcher, 3, 4)
    assert (env.local_rank, env.num_local) == (1, num_local)
    assert env.num_cpus >= 1


def test_a_process_by_itself() -> None:
    env = read_launch(HOME)
    assert (env.launcher, env.world_rank, env.world_size) == ("none", 0, 1)
    assert (env.local_rank, env.job_id, env.omp_threads, env.slurm) == (None, "", None, {})


def test_a_batch_script_is_not_a_task_of_srun() -> None:
    env = read_launch(HOME | BATCH_SCRIPT)
    assert (env.launcher, env.world_size, env.job_id) == ("none", 1, "812")
    assert env.slurm["restart_count"] == "1"
    assert env.slurm["job_nodelist"] == "n[1-2]"
    assert "procid" not in env.slurm


def test_pmi_and_pmix_alone() -> None:
    assert read_launch(HOME | {"PMI_RANK": "1", "PMI_SIZE": "3"}).world_size == 3
    env = read_launch(HOME | {"PMIX_RANK": "2"})
    assert (env.launcher, env.world_rank, env.world_size) == ("pmix", 2, 3)


@pytest.mark.parametrize(
    ("name", "value"), [("PMI_RANK", "two"), ("PMI_SIZE", "-4"), ("OMP_NUM_THREADS", "0")]
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected a number .* got '{value}'"):
        read_launch(HOME | HYDRA | {name: value})


def test_cache_folder() -> None:
    assert read_launch(HOME).cache_dir == Path("/home/u/.cache/janus-hpc")
    assert read_launch(HOME | {"XDG_CACHE_HOME": "/c"}).cache_dir == Path("/c/janus-hpc")
    # The XDG specification has relative paths ignored.
    assert read_launch(HOME | {"XDG_CACHE_HOME": "c"}).cache_dir.is_relative_to("/home/u")


def test_wrong_mpi_names_launcher_library_and_remedy() -> None:
    library = "Open MPI v5.0.11\nsecond line"
    env = read_launch(HOME | HYDRA)
    check_world(env, 4, library)
    check_world(read_launch(HOME), 1, library)
    with pytest.raises(UsageError) as caught:
        check_world(env, 1, library)
    message = str(caught.value)
    for part in ("hydra started 4 processes", "world rank 3", "'Open MPI v5.0.11'", "mpirun"):
        assert part in message


@pytest.mark.parametrize(
    ("omp", "num_cores", "num_ranks", "num_threads", "oversubscribed"),
    [
        (None, 8, 2, 4, False),
        (None, 8, 3, 2, False),
        (None, 2, 16, 1, True),
        (None, 1, 1, 1, False),
        (6, 8, 4, 6, False),
        (1, 2, 3, 1, True),
    ],
)
def test_threads(
    omp: int | None, num_cores: int, num_ranks: int, num_threads: int, oversubscribed: bool
) -> None:
    threads = threads_per_rank(LaunchEnv(omp_threads=omp), num_cores, num_ranks)
    assert (threads.num_threads, threads.oversubscribed) == (num_threads, oversubscribed)
    assert ("OMP_NUM_THREADS" in threads.why) == (omp is not None)


def test_a_list_of_thread_counts_gives_the_outermost() -> None:
    assert read_launch(HOME | {"OMP_NUM_THREADS": "4,2"}).omp_threads == 4
    assert read_launch(HOME | {"OMP_NUM_THREADS": ""}).omp_threads is None


def test_launch_comes_before_torch_and_mpi() -> None:
    code = (
        "import sys; from janus_hpc.launch import read_launch; read_launch(); "
        "import janus_hpc.topology, janus_hpc.log; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'mpi4py', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
