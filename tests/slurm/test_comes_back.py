"""A job that runs out of time, or loses a node, comes back by itself and completes with the same bytes."""

import re
import shutil
from pathlib import Path

import pytest

from tests.jobs.launcher import export_text
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.nodes import bring_back, kill_node, set_state, start_node
from tests.slurm.runs import (
    JOB_LIMIT_S,
    SCRIPTS,
    finish,
    frozen,
    nodes_out,
    output_of,
    ranks,
    state_of,
    wait_for_rows,
)

SCRIPT = SCRIPTS / "janus.sbatch"
# Few at once, so that a run in its middle has finished some rows and not begun others.
SLOWLY = ("--max-sequences", "2", "--max-step-tokens", "32")


def resumed(output: str) -> int:
    """How many rows were done at the second start."""
    found = re.search(r"resuming: (\d+) of \d+ rows", output)
    assert found is not None, output[-3000:]
    return int(found[1])


def test_a_job_out_of_time_resumes_on_fewer_nodes(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm signals the ranks before the limit; they drain, the job queues again, one node is left for it."""
    folder, expected = plain
    monkeypatch.setitem(cluster.environ, "JANUS_REQUEUE_NODES", "1-2")
    sizes = ("--nodes=2", "--ntasks-per-node=2", "--time=30", "--signal=USR1@60")
    job = cluster.submit(folder, *sizes, SCRIPT, "rows.jsonl", "-o", "time.h5", *SLOWLY)
    wait_for_rows(cluster, folder, job, "time.h5")
    pids = list(ranks(cluster, job).values())
    assert len(pids) == 4
    with nodes_out(cluster, "n2", "n3", "n4"):
        # Slurm looks at limits every 30 s, and the run must not end before it has. With its signal it
        # lets stopped processes go on.
        with frozen(pids):
            cluster.command("scontrol", "update", f"JobId={job}", "EndTime=now+2minutes")
            wait_until(
                lambda: state_of(cluster, job) == "PENDING", "the job queues again", JOB_LIMIT_S
            )
        assert not (folder / "time.h5").exists()
        cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=30")
        output = finish(cluster, folder, job)
    assert f"janus: requeued as {job}, restart 1" in output
    assert "the same command resumes" in output
    assert 0 < resumed(output) < len(expected.splitlines())
    # By default a quarter of the ranks does attention: 4 ranks at first, 2 then.
    assert re.findall(r"split (\S+)", output) == ["1a3e", "1a1e"]
    assert export_text(folder / "time.h5", folder) == expected


@pytest.mark.parametrize(("num_nodes", "per_node", "lost"), [(3, 1, "n2"), (1, 2, "n1")])
def test_a_node_lost_in_mid_run(
    cluster: Cluster, plain: tuple[Path, str], num_nodes: int, per_node: int, lost: str
) -> None:
    """Slurm ends and requeues the job itself, without a word to the ranks, which leave their shared memory behind."""
    folder, expected = plain
    out = f"down-{lost}.h5"
    sizes = (f"--nodes={num_nodes}", f"--ntasks-per-node={per_node}")
    job = cluster.submit(folder, *sizes, SCRIPT, "rows.jsonl", "-o", out, *SLOWLY)
    wait_for_rows(cluster, folder, job, out)
    with nodes_out(cluster, lost, state="DOWN"):
        output = finish(cluster, folder, job)
    assert f"Node failure on {lost}" in output and "janus: requeued" not in output
    assert 0 < resumed(output) < len(expected.splitlines())
    assert export_text(folder / out, folder) == expected


def test_a_node_that_dies_before_slurm_knows(cluster: Cluster, plain: tuple[Path, str]) -> None:
    """The step fails at once, and Slurm would call the node down minutes later: the script asks the nodes."""
    folder, expected = plain
    sizes = ("--nodes=2", "--ntasks-per-node=1")
    job = cluster.submit(folder, *sizes, SCRIPT, "rows.jsonl", "-o", "dead.h5", *SLOWLY)
    wait_for_rows(cluster, folder, job, "dead.h5")
    names = cluster.command("squeue", "--noheader", "-j", job, "-o", "%N")
    nodes = cluster.command("scontrol", "show", "hostnames", names.strip()).split()
    # The script runs on the first.
    kill_node(cluster, nodes[1])
    said = f"janus: a node does not answer\njanus: requeued as {job}, restart 1"
    try:
        wait_until(lambda: said in output_of(folder, job), "the job is requeued", JOB_LIMIT_S)
        # As Slurm does once the node was silent for SlurmdTimeout, 300 s; until then the job is not over.
        set_state(cluster, nodes[1], "DOWN")
        finish(cluster, folder, job)
    finally:
        start_node(cluster, nodes[1])
        bring_back(cluster, nodes[1])
    assert 0 < resumed(output_of(folder, job)) < len(expected.splitlines())
    assert export_text(folder / "dead.h5", folder) == expected


def test_a_signal_while_python_starts(
    cluster: Cluster, plain: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the ranks, which cannot listen yet; the job comes back all the same."""
    whole = plain[0] / "few.jsonl"
    program = shutil.which("janus-hpc", path=cluster.environ["PATH"])
    (tmp_path / "bin").mkdir()
    early = tmp_path / "bin" / "janus-hpc"
    text = (
        f'#!/bin/bash\n[ -n "${{SLURM_RESTART_COUNT:-}}" ] || kill -USR1 $$\nexec {program} "$@"\n'
    )
    early.write_text(text)
    early.chmod(0o755)
    monkeypatch.setitem(cluster.environ, "PATH", f"{early.parent}:{cluster.environ['PATH']}")
    job = cluster.submit(tmp_path, "--ntasks-per-node=2", SCRIPT, whole, "-o", "early.h5")
    output = finish(cluster, tmp_path, job)
    assert f"janus: requeued as {job}, restart 1" in output
    assert (tmp_path / "early.h5").exists()


def test_a_cancelled_job_stays_away(cluster: Cluster, plain: tuple[Path, str]) -> None:
    folder, _ = plain
    job = cluster.submit(folder, SCRIPT, "rows.jsonl", "-o", "cancelled.h5", *SLOWLY)
    wait_for_rows(cluster, folder, job, "cancelled.h5")
    cluster.command("scancel", job)
    ended, _ = cluster.wait_for(job, JOB_LIMIT_S)
    wait_until(cluster.nodes_are_idle, "the job has left its node", JOB_LIMIT_S)
    assert (ended, state_of(cluster, job)) == ("CANCELLED", "CANCELLED")
    assert "janus: requeued" not in output_of(folder, job)


def test_a_job_told_to_stay_resumes_with_the_same_command(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = plain
    monkeypatch.setitem(cluster.environ, "JANUS_REQUEUE", "0")
    command = ("--ntasks-per-node=2", SCRIPT, "rows.jsonl", "-o", "stay.h5", *SLOWLY)
    job = cluster.submit(folder, *command)
    wait_for_rows(cluster, folder, job, "stay.h5")
    cluster.command("scancel", "--signal=USR1", job)
    output = finish(cluster, folder, job, ("FAILED", "75:0"))
    assert "janus: not requeued: JANUS_REQUEUE=0; the same sbatch command resumes" in output
    output = finish(cluster, folder, cluster.submit(folder, *command))
    assert 0 < resumed(output) < len(expected.splitlines())
    assert export_text(folder / "stay.h5", folder) == expected


def test_a_job_comes_back_so_often_and_no_more(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = plain
    monkeypatch.setitem(cluster.environ, "JANUS_MAX_REQUEUES", "0")
    arguments = ("rows.jsonl", "-o", "often.h5", *SLOWLY)
    job = cluster.submit(folder, "--ntasks-per-node=2", SCRIPT, *arguments)
    wait_for_rows(cluster, folder, job, "often.h5")
    cluster.command("scancel", "--signal=USR1", job)
    output = finish(cluster, folder, job, ("FAILED", "75:0"))
    assert "janus: not requeued: restarted 0 times (JANUS_MAX_REQUEUES)" in output
