"""The real command over really broken surroundings: a planted fault is found, said once, and decides the exit code."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from janus_hpc.demo import demo_model_dir
from tests.jobs.launcher import TIME_LIMIT_S, environment, janus_command, run_janus

NUM_CORES = len(os.sched_getaffinity(0))
# What a machine for tests may lack without being at fault.
TRUE_OF_MACHINES = {"threads", "kernels", "shm", "memory", "limits", "output", "versions"}


def doctor(
    folder: Path, *args: str | Path, num_ranks: int = 0, code: int | None = None, **environ: str
) -> list[dict[str, Any]]:
    """The findings, as --json gives them; the exit code is that of the worst, or `code`."""
    done = subprocess.run(
        janus_command(num_ranks, "doctor", "--json", "findings.json", *args),
        cwd=folder,
        env=environment() | environ,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S + 20,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    findings: list[dict[str, Any]] = json.loads((folder / "findings.json").read_text())
    worst = {its["level"] for its in findings}
    expected = 2 if "error" in worst else 1 if "warning" in worst else 0
    assert done.returncode == (expected if code is None else code), done.stdout + done.stderr
    for its in findings:
        assert not (its["level"] in ("warning", "error") and not (its["why"] and its["fix"])), its
    return findings


def only(findings: list[dict[str, Any]], check: str, level: str, *parts: str) -> dict[str, Any]:
    """There is one finding that is neither fine nor a note; it is this one."""
    bad = [its for its in findings if its["level"] in ("warning", "error")]
    assert [(its["check"], its["level"]) for its in bad] == [(check, level)], findings
    assert all(part in json.dumps(bad[0]) for part in parts), bad[0]
    return bad[0]


@pytest.mark.parametrize("num_ranks", [0, 2, 3])
def test_a_healthy_machine(tmp_path: Path, num_ranks: int) -> None:
    """Nothing is found that is not true: more ranks than cores is."""
    findings = doctor(tmp_path, "--timeout-s", "120", num_ranks=num_ranks)
    bad = {its["check"] for its in findings if its["level"] not in ("ok", "info")}
    assert bad <= TRUE_OF_MACHINES, findings
    assert not any(its["level"] == "error" for its in findings), findings
    if num_ranks > NUM_CORES:
        assert any(f"{num_ranks} ranks on" in its["what"] for its in findings), findings
    assert sorted(its.name for its in tmp_path.iterdir()) == ["findings.json"]


def test_the_text_is_for_people(tmp_path: Path) -> None:
    done = run_janus(0, "doctor", "--only", "mpi,slurm,allocator", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["ok", "mpi"],
        ["info", "slurm"],
        ["ok", "allocator"],
    ]
    assert lines[-1].endswith("on 1 rank on 1 node: ready to run")
    assert max(map(len, lines)) <= 100
    read = run_janus(0, "doctor", "--only", "mpi", "--json", "-", cwd=tmp_path).stdout
    assert [its["check"] for its in json.loads(read)] == ["mpi"]


@pytest.mark.parametrize(
    "args", [("--only", "mpj"), ("--timeout-s", "no"), ("--job", "nowhere.toml"), ("x",)]
)
def test_wrong_options(tmp_path: Path, args: tuple[str, ...]) -> None:
    done = run_janus(2, "doctor", *args, cwd=tmp_path, check=2)
    assert args[-1] in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_launcher_of_another_mpi(tmp_path: Path) -> None:
    """Every process is alone; only the first one speaks, and all have one exit code."""
    of = {"OMPI_COMM_WORLD_SIZE": "3"}
    findings = doctor(tmp_path, "--only", "mpi,ranks", OMPI_COMM_WORLD_RANK="0", **of)
    only(findings, "mpi", "error", "openmpi started 3 processes", "MPICH")
    for rank in "12":
        done = subprocess.run(
            janus_command(0, "doctor"),
            cwd=tmp_path,
            env=environment() | of | {"OMPI_COMM_WORLD_RANK": rank},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_no_mpi_library(tmp_path: Path) -> None:
    findings = doctor(tmp_path, "--only", "mpi,output,ucx", MPI4PY_LIBMPI="/nowhere/libmpi.so")
    only(findings, "mpi", "error", "finds no MPI library", "/nowhere/libmpi.so")


def test_fewer_ranks_than_slurm_gave_tasks(tmp_path: Path) -> None:
    found = doctor(tmp_path, "--only", "mpi", num_ranks=2, SLURM_NTASKS="4", SLURM_JOB_ID="1")
    only(found, "mpi", "warning", "MPI sees 2 ranks, but SLURM_NTASKS=4")
    found = doctor(tmp_path, "--only", "mpi", SLURM_NTASKS="4", SLURM_JOB_ID="1")
    only(found, "mpi", "warning", "started without srun or mpirun")


def test_a_job_that_ends_soon(tmp_path: Path) -> None:
    end = str(int(time.time()) + 100)
    found = doctor(tmp_path, "--only", "slurm", SLURM_JOB_ID="1", SLURM_JOB_END_TIME=end)
    only(found, "slurm", "warning", "job 1 ends in 1.")


def test_too_many_threads(tmp_path: Path) -> None:
    many = str(4 * NUM_CORES)
    found = doctor(tmp_path, "--only", "threads", OMP_NUM_THREADS=many)
    only(found, "threads", "warning", f"{many} threads", "OMP_NUM_THREADS")


@pytest.mark.skipif(NUM_CORES < 2, reason="needs two cores")
@pytest.mark.skipif(shutil.which("taskset") is None, reason="there is no taskset")
def test_ranks_bound_to_one_core(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    command = janus_command(2, "doctor", "--only", "threads", "--json", "findings.json")
    subprocess.run(
        ["taskset", "-c", str(core), *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    found = json.loads((tmp_path / "findings.json").read_text())
    only(found, "threads", "warning", "2 ranks are bound to the same 1 of")


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments(tmp_path: Path, name: str) -> None:
    found = doctor(tmp_path, "--only", "allocator", **{name: "expandable_segments:True"})
    only(found, "allocator", "warning", f"{name}=expandable_segments:True", "CUDA IPC")


def test_hdf5_locking_switched_off(tmp_path: Path) -> None:
    found = doctor(tmp_path, "--only", "hdf5", HDF5_USE_FILE_LOCKING="FALSE")
    only(found, "hdf5", "warning", "HDF5_USE_FILE_LOCKING=FALSE")


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.h5").mkdir()
    for output, text in (
        ("file/out.h5", "is not a folder"),
        ("folder.h5", "is a folder; name a file"),
        ("/proc/self/out.h5", "cannot be written to"),
    ):
        found = doctor(tmp_path, "--only", "output", "-o", output, num_ranks=2)
        only(found, "output", "error", text)
    # A run makes the folders that are missing.
    found = doctor(tmp_path, "--only", "output,hdf5", "-o", "new/er/out.h5", num_ranks=2)
    assert {its["level"] for its in found} <= {"ok", "info"}, found
    assert not (tmp_path / "new").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (small_disk / "fill").open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    findings = doctor(tmp_path, "--only", "output", "-o", small_disk / "out.h5")
    only(findings, "output", "error", "No space left")
    (small_disk / "fill").unlink()
    findings = doctor(tmp_path, "--only", "output", "-o", small_disk / "out.h5")
    only(findings, "output", "error", "MB free")


def test_a_disk_that_is_read_only(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    findings = doctor(tmp_path, "--only", "output,hdf5", "-o", small_disk / "out.h5")
    only(findings, "output", "error", "Read-only file system")


def test_a_process_that_never_comes_to_mpi(tmp_path: Path) -> None:
    """MPI_Init waits for it, holding Python's lock; the command ends nevertheless, and says why."""
    command = janus_command(1, "doctor", "--only", "mpi", "--timeout-s", "1")
    done = subprocess.run(
        [*command, ":", "-n", "1", "tail", "-f", "/dev/null"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode != 0
    assert "starting MPI with all other processes takes more than 5 s" in done.stderr


def two_nodes(folder: Path, *args: str) -> tuple[int, list[dict[str, Any]]]:
    """One rank in `here`, one in `there`, which do not share memory, as on two hosts."""
    for name in ("here", "there"):
        (folder / name).mkdir(exist_ok=True)
    one = janus_command(1, "doctor", "--json", folder / "findings.json", *args)
    command = [one[0], "-wdir", str(folder / "here"), *one[1:], ":"]
    command += ["-wdir", str(folder / "there"), *one[1:]]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment() | {"MPIR_CVAR_NOLOCAL": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads((folder / "findings.json").read_text())


def test_an_output_folder_that_is_not_shared(tmp_path: Path) -> None:
    code, found = two_nodes(tmp_path, "--only", "output,clocks")
    its = only(found, "output", "error", "not the same folder on all hosts")
    assert (code, its["ranks"]) == (2, [1])
    assert not list((tmp_path / "here").iterdir()) and not list((tmp_path / "there").iterdir())


def copy_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in demo_model_dir().iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, folder / path.name)
    return folder


def test_another_model_on_another_host(tmp_path: Path) -> None:
    copy_model(tmp_path / "here/model")
    other = copy_model(tmp_path / "there/model")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    code, found = two_nodes(tmp_path, "--only", "model", "--model", "model")
    its = only(found, "model", "error", "another folder on 1 of 2 nodes")
    assert (code, its["ranks"]) == (2, [1])


def test_a_rank_that_hangs_is_named_and_the_command_ends(tmp_path: Path) -> None:
    """A FIFO that nobody writes to stands for a file server that does not answer."""
    copy_model(tmp_path / "here/model")
    other = copy_model(tmp_path / "there/model")
    (other / "config.json").unlink()
    os.mkfifo(other / "config.json")
    code, found = two_nodes(
        tmp_path, "--only", "mpi,model,clocks", "--model", "model", "--timeout-s", "5"
    )
    its = only(found, "model", "error", "no answer in 5 s from 1 of 2 ranks")
    assert (code, its["ranks"]) == (2, [1])


def test_a_broken_model_folder(tmp_path: Path) -> None:
    """The command over some; tests/unit/test_doctor_model.py has the rest."""
    model = copy_model(tmp_path / "model")
    shard = model / "model-00003-of-00003.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    args = ("--only", "model", "--model", "model")
    only(
        doctor(tmp_path, *args, num_ranks=2), "model", "error", "is truncated: 1 bytes", shard.name
    )
    shard.unlink()
    only(doctor(tmp_path, *args), "model", "error", "names 1 files that are missing", shard.name)
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["Llama"]}))
    findings = doctor(tmp_path, *args)
    only(findings, "model", "error", "unknown architecture 'Llama'")


def test_a_job_file_names_model_and_output(tmp_path: Path) -> None:
    copy_model(tmp_path / "jobs/model")
    (tmp_path / "jobs/model/tokenizer.json").unlink()
    (tmp_path / "gone").write_text("")
    job = tmp_path / "jobs/x.toml"
    job.write_text('prompts = "p.jsonl"\nmodel = "model"\noutput = "gone/out.h5"\n')
    findings = doctor(tmp_path, "--only", "model,output", "--job", job)
    bad = {its["check"]: its["level"] for its in findings}
    assert bad == {"model": "warning", "output": "error"}, findings


def test_no_compiler(tmp_path: Path) -> None:
    """One rank without: a run would refuse. The interpreter is named whole, so an empty PATH does."""
    one = janus_command(1, "doctor", "--only", "kernels", "--json", "findings.json")
    (tmp_path / "cache").mkdir()
    plain = ["env", f"PATH={tmp_path}", f"XDG_CACHE_HOME={tmp_path}/cache"]
    command = [*one, ":", "-n", "1", *plain, *one[3:]]
    subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    found = json.loads((tmp_path / "findings.json").read_text())
    if shutil.which("gcc") is None:
        pytest.skip("no rank has a compiler")
    only(found, "kernels", "error", "1 of 2 ranks have no compiled kernels")
