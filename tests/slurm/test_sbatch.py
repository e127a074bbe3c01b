"""slurm/janus.sbatch under a real Slurm gives the rows of a plain run, and resumes after a signal."""

import json
import random
import re
from pathlib import Path

import h5py
import pytest

from janus_hpc.demo import demo_model_dir
from janus_hpc.results.record import HEADER_BYTES
from tests.jobs.launcher import export_rows, export_text, run_janus, write_rows
from tests.slurm.cluster import Cluster, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "janus.sbatch"
JOB_LIMIT_S = 180.0
NUM_ROWS = 60
NUM_FIRST = 12
JOB_FILE = """\
prompts = "rows.jsonl"
output = "job.h5"
split = "1a1e"
# Few at once, so that a run in its middle has finished some rows and not begun others.
max_sequences = 2
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with rows and a job file, and the export of a run without Slurm."""
    folder = tmp_path_factory.mktemp("sbatch")
    generator = random.Random(5)
    rows = []
    for index in range(NUM_ROWS):
        word = "".join(generator.choice("abcdefghij") for _ in range(generator.randrange(2, 30)))
        task = generator.choice(["Reverse: {} =", "Sort: {} =", "Upper: {} ="])
        row = {"prompt": task.format(word), "max_tokens": 60, "ignore_eos": True}
        rows.append(row | {"temperature": index % 2})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "first.jsonl", rows[:NUM_FIRST])
    (folder / "job.toml").write_text(JOB_FILE)
    run_janus(0, "infer", "rows.jsonl", "-o", "plain.h5", cwd=folder)
    return folder, export_text(folder / "plain.h5", folder)


def run_job(cluster: Cluster, folder: Path, *words: str | Path) -> str:
    """Submit, wait for success, and return what the job wrote."""
    return finish_job(cluster, folder, cluster.submit(folder, *words))


def finish_job(cluster: Cluster, folder: Path, job: str) -> str:
    ended = cluster.wait_for(job, JOB_LIMIT_S)
    output = (folder / f"janus-{job}.out").read_text()
    assert ended == ("COMPLETED", "0:0"), f"{ended}\n{output[-3000:]}"
    return output


def test_the_script_as_it_stands_runs_the_demo(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, SCRIPT)
    run_janus(0, "infer", demo_model_dir() / "prompts.jsonl", "-o", "plain.h5", cwd=tmp_path)
    finish_job(cluster, tmp_path, job)
    rows = export_rows(tmp_path / "prompts.h5", tmp_path)
    assert len(rows) == 8
    assert rows == export_rows(tmp_path / "plain.h5", tmp_path)
    with h5py.File(tmp_path / "prompts.h5") as file:
        launch = json.loads(file["launches/info_values"][()].tobytes())
    assert (launch["launcher"], launch["num_ranks"], launch["job_id"]) == ("slurm", 4, job)


def test_two_nodes_with_arguments(cluster: Cluster, plain: tuple[Path, str]) -> None:
    folder, expected = plain
    sizes = ("--nodes=2", "--ntasks-per-node=2")
    arguments = ("first.jsonl", "-o", "out.h5", "--split", "1a3e")
    output = run_job(cluster, folder, *sizes, SCRIPT, *arguments)
    assert "split 1a3e" in output
    # A row's answer does not depend on the rows beside it.
    assert export_text(folder / "out.h5", folder).splitlines() == expected.splitlines()[:NUM_FIRST]


def test_a_signalled_job_file_resumes(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """USR1 in mid-run, as Slurm sends it before the time limit: exit 75; the same command completes."""
    folder, expected = plain
    monkeypatch.setitem(cluster.environ, "JOB", "job.toml")
    command = ("--ntasks-per-node=2", SCRIPT)
    job = cluster.submit(folder, *command)
    wait_until(lambda: has_rows(folder / "job.h5.run"), "a row is journalled", JOB_LIMIT_S)
    cluster.command("scancel", "--signal=USR1", job)
    ended = cluster.wait_for(job, JOB_LIMIT_S)
    output = (folder / f"janus-{job}.out").read_text()
    assert ended == ("FAILED", "75:0"), f"{ended}\n{output[-3000:]}"
    assert "the same command resumes" in output
    assert not (folder / "job.h5").exists()

    output = run_job(cluster, folder, *command)
    found = re.search(rf"resuming: (\d+) of {NUM_ROWS} rows", output)
    assert found and 0 < int(found[1]) < NUM_ROWS, output[-3000:]
    assert export_text(folder / "job.h5", folder) == expected


def has_rows(run_dir: Path) -> bool:
    """Whether some rank's journal holds more than its header: rows are written as they finish."""
    return any(path.stat().st_size > HEADER_BYTES for path in run_dir.glob("*.jnl"))
