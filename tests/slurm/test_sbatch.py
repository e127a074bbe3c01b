"""slurm/janus.sbatch under a real Slurm gives the rows of a plain run, and says how a run ended."""

import json
import os
import shlex
import signal
from pathlib import Path

import h5py
import pytest

from janus_hpc.demo import demo_model_dir
from tests.jobs.launcher import export_rows, export_text, run_janus
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NUM_FEW
from tests.slurm.runs import SCRIPTS, finish, ranks, wait_for_rows

SCRIPT = SCRIPTS / "janus.sbatch"
SAYS_GPUS = '#!/bin/bash\necho "$SLURM_NODEID ${CUDA_VISIBLE_DEVICES-all}" > "gpus-$SLURM_PROCID"\n'


def test_the_script_as_it_stands_runs_the_demo(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, SCRIPT)
    run_janus(0, "infer", demo_model_dir() / "prompts.jsonl", "-o", "plain.h5", cwd=tmp_path)
    finish(cluster, tmp_path, job)
    rows = export_rows(tmp_path / "prompts.h5", tmp_path)
    assert len(rows) == 8
    assert rows == export_rows(tmp_path / "plain.h5", tmp_path)
    with h5py.File(tmp_path / "prompts.h5") as file:
        launch = json.loads(file["launches/info_values"][()].tobytes())
    assert (launch["launcher"], launch["num_ranks"], launch["job_id"]) == ("slurm", 4, job)


def test_two_nodes_with_arguments_and_an_environment_file(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = plain
    monkeypatch.setitem(cluster.environ, "JANUS_ENV", str(SCRIPTS / "env" / "mpich.env"))
    sizes = ("--nodes=2", "--ntasks-per-node=2")
    arguments = ("few.jsonl", "-o", "out.h5", "--split", "1a3e")
    output = finish(cluster, folder, cluster.submit(folder, *sizes, SCRIPT, *arguments))
    assert "split 1a3e" in output
    # A row's answer does not depend on the rows beside it.
    assert export_text(folder / "out.h5", folder).splitlines() == expected.splitlines()[:NUM_FEW]


def test_steps_get_the_scripts_environment_where_sbatch_exports_little(
    cluster: Cluster, plain: tuple[Path, str], tmp_path: Path
) -> None:
    """With --export=NONE or a list sbatch tells srun to hand on no more than that."""
    (tmp_path / "few.jsonl").write_text((plain[0] / "few.jsonl").read_text())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    path = cluster.environ["PATH"]
    (tmp_path / ".venv/bin/activate").write_text(f"export PATH={shlex.quote(path)}\n")
    job = cluster.submit(tmp_path, "--export=COLOUR=red", SCRIPT, "few.jsonl", "-o", "out.h5")
    finish(cluster, tmp_path, job)
    assert len(export_text(tmp_path / "out.h5", tmp_path).splitlines()) == NUM_FEW


@pytest.mark.parametrize(
    ("line", "flag", "ended"),
    [
        ("{broken", "--strict", "2:0"),
        ("{broken", "--no-such", "2:0"),
        ("{broken", "--seed=1", "3:0"),
    ],
)
def test_ranks_that_agree_on_a_code_end_the_job_with_it(
    cluster: Cluster, plain: tuple[Path, str], tmp_path: Path, line: str, flag: str, ended: str
) -> None:
    """srun ends the others at the first of them, and must not change the code by that."""
    rows = (plain[0] / "few.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(f"{rows}{line}\n")
    job = cluster.submit(tmp_path, "--ntasks-per-node=2", SCRIPT, "rows.jsonl", flag)
    finish(cluster, tmp_path, job, ("FAILED", ended))


def test_a_killed_rank_ends_the_job(cluster: Cluster, plain: tuple[Path, str]) -> None:
    folder, _ = plain
    arguments = ("rows.jsonl", "-o", "killed.h5", "--max-sequences", "2")
    job = cluster.submit(folder, "--ntasks-per-node=2", SCRIPT, *arguments)
    wait_for_rows(cluster, folder, job, "killed.h5")
    os.kill(ranks(cluster, job)[1], signal.SIGKILL)
    output = finish(cluster, folder, job, ("FAILED", "137:0"))
    # Ended because of that rank, not by the wait for ranks that are left over.
    assert "task 1: Killed" in output and "First task exited" not in output


def test_every_rank_sees_the_gpus_of_its_node(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead = tmp_path / "bin" / "janus-hpc"
    instead.parent.mkdir()
    instead.write_text(SAYS_GPUS)
    instead.chmod(0o755)
    monkeypatch.setitem(
        cluster.environ, "PATH", f"{instead.parent}{os.pathsep}{cluster.environ['PATH']}"
    )
    # A GPU a task is what binds each rank to one of them, unless told otherwise.
    sizes = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1")
    job = cluster.submit(tmp_path, *sizes, SCRIPT, "rows.jsonl")
    finish(cluster, tmp_path, job)
    seen = [(tmp_path / f"gpus-{rank}").read_text().split() for rank in range(4)]
    # Nodes filled in turn, and no rank left with a part of its node's GPUs.
    assert [node for node, _ in seen] == ["0", "0", "1", "1"]
    assert {gpus for _, gpus in seen} <= {"all", "0,1"}
