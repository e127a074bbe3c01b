"""What `janus-hpc plan --emit slurm` writes runs as it is, with the ranks where its map has them."""

import json
import os
from pathlib import Path

import h5py
import msgspec
import pytest

from janus_hpc.demo import demo_model_dir
from janus_hpc.planner.profile_file import write_profile
from tests.jobs.launcher import export_rows, run_janus
from tests.slurm.cluster import Cluster
from tests.unit.planner_profiles import demo_profile

JOB_LIMIT_S = 180.0
PROMPTS = demo_model_dir() / "prompts.jsonl"
SAYS_WHERE = """\
#!/bin/bash
echo "$SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID" > "where-$SLURM_PROCID"
"""


def plan(folder: Path, *words: str | Path) -> None:
    """Write a plan for the demo into the folder `planned`."""
    write_profile(folder / "profile.json", demo_profile(num_cores=os.cpu_count() or 1))
    emit = ("--emit", "slurm", "-o", "planned", "--no-baselines")
    run_janus(0, "plan", "--profile", "profile.json", *emit, *words, cwd=folder)


def run_job(cluster: Cluster, folder: Path) -> str:
    """Submit the planned script, wait for its success, and return what it wrote."""
    job = cluster.submit(folder, "planned/janus-plan.sbatch")
    ended = cluster.wait_for(job, JOB_LIMIT_S)
    output = (folder / f"janus-plan-{job}.out").read_text()
    assert ended == ("COMPLETED", "0:0"), f"{ended}\n{output[-3000:]}"
    return output


def test_a_plan_of_two_ranks_for_these_prompts(cluster: Cluster, tmp_path: Path) -> None:
    plan(tmp_path, "--prompts", PROMPTS, "--ranks", "2", "--json", "plan.json")
    chosen = json.loads((tmp_path / "plan.json").read_text())["chosen"]
    assert chosen["num_ranks"] == 2, chosen
    output = run_job(cluster, tmp_path)
    assert len(export_rows(tmp_path / "prompts.h5", tmp_path)) == 8
    with h5py.File(tmp_path / "prompts.h5") as file:
        launch = json.loads(file["launches/info_values"][()].tobytes())
    assert (launch["launcher"], launch["num_ranks"]) == ("slurm", 2)
    assert f"split {'colocated' if chosen['colocated'] else '1a1e'}" in output, output


def test_ranks_lie_on_nodes_as_the_map_says(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven ranks on nodes of three: Slurm left to itself may start 3, 2 and 2 of them."""
    # In 5 slots a rank, 7 ranks are the fewest that hold 32 experts: no other candidate is left.
    few = ("--slots", "5", "--ranks", "7", "--ranks-per-node", "3", "--context", "20")
    plan(tmp_path, *few)
    instead = tmp_path / "bin" / "janus-hpc"
    instead.parent.mkdir()
    instead.write_text(SAYS_WHERE)
    instead.chmod(0o755)
    path = f"{instead.parent}{os.pathsep}{cluster.environ['PATH']}"
    monkeypatch.setitem(cluster.environ, "PATH", path)
    run_job(cluster, tmp_path)
    planned = (tmp_path / "planned" / "ranks.txt").read_text().splitlines()[1:]
    assert len(planned) == 7
    for line in planned:
        world_rank = line.split()[0]
        assert (tmp_path / f"where-{world_rank}").read_text().split() == line.split()[:3]


def test_roles_on_different_hardware_become_a_heterogeneous_job(
    cluster: Cluster, tmp_path: Path
) -> None:
    profile = demo_profile(num_cores=os.cpu_count() or 1)
    other = msgspec.structs.replace(profile.hardware, name="another")
    write_profile(tmp_path / "experts.json", msgspec.structs.replace(profile, hardware=other))
    few = ("--ranks", "3", "--ranks-per-node", "1", "--context", "20", "--slots", "16")
    plan(tmp_path, "--expert-profile", "experts.json", *few)
    output = run_job(cluster, tmp_path)
    rows = (tmp_path / "planned" / "ranks.txt").read_text().splitlines()
    assert "split 1a2e" in output and rows[0].startswith("# 1a2e"), output
    assert [row.split()[1] for row in rows[1:]] == ["0", "1", "2"]
    assert len(export_rows(tmp_path / "prompts.h5", tmp_path)) == 8
