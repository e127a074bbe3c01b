"""The variants of the batch script: an array of shards, a heterogeneous job, a container."""

import os
from pathlib import Path

import pytest

from tests.jobs.launcher import export_text
from tests.slurm.cluster import Cluster
from tests.slurm.runs import SCRIPTS, finish

APPTAINER = """\
#!/bin/bash
# Stands for Apptainer: takes `exec [options] IMAGE command...` apart as it does, and runs the command here.
[ "$1" = exec ] || { echo "apptainer: unexpected $1" >&2; exit 255; }
shift
while [[ "$1" == --* ]]; do
    case "$1" in
        --bind | --pwd) shift 2 ;;
        --nv) shift ;;
        *) echo "apptainer: unknown option $1" >&2; exit 255 ;;
    esac
done
[ -f "$1" ] || { echo "apptainer: no image $1" >&2; exit 255; }
touch "inside-${SLURM_PROCID:-batch}"
shift
exec "$@"
"""


def test_an_array_of_three_becomes_one_file(
    cluster: Cluster, plain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = plain
    monkeypatch.setitem(cluster.environ, "OUT", "whole.h5")
    array = ("--array=1-3", "--ntasks-per-node=2", SCRIPTS / "janus_array.sbatch", "rows.jsonl")
    job = cluster.submit(folder, *array)
    merge = cluster.submit(folder, f"--dependency=afterany:{job}", SCRIPTS / "janus_merge.sbatch")
    finish(cluster, folder, merge)
    assert len(list(folder.glob("whole.shard-*-of-3.h5"))) == 3
    assert export_text(folder / "whole.h5", folder) == expected


def test_both_components_of_a_heterogeneous_job_are_one_world(
    cluster: Cluster, plain: tuple[Path, str]
) -> None:
    folder, expected = plain
    script = SCRIPTS / "janus_hetjob.sbatch"
    sizes = ("--nodes=1", "--ntasks-per-node=1", ":", "--nodes=2", "--ntasks-per-node=2")
    job = cluster.submit(folder, *sizes, script, "rows.jsonl", "-o", "het.h5")
    output = finish(cluster, folder, job)
    assert "split 1a4e" in output
    assert export_text(folder / "het.h5", folder) == expected


def test_ranks_in_a_container(
    cluster: Cluster, plain: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = plain
    standin = tmp_path / "bin" / "apptainer"
    standin.parent.mkdir()
    standin.write_text(APPTAINER)
    standin.chmod(0o755)
    (tmp_path / "janus.sif").touch()
    path = f"{standin.parent}{os.pathsep}{cluster.environ['PATH']}"
    monkeypatch.setitem(cluster.environ, "PATH", path)
    monkeypatch.setitem(cluster.environ, "JANUS_IMAGE", str(tmp_path / "janus.sif"))
    monkeypatch.setitem(cluster.environ, "JANUS_BIND", str(tmp_path))
    sizes = ("--ntasks-per-node=2", "--gpus-per-node=2")
    job = cluster.submit(
        folder, *sizes, SCRIPTS / "janus_container.sbatch", "rows.jsonl", "-o", "inside.h5"
    )
    finish(cluster, folder, job)
    assert {path.name for path in folder.glob("inside-*")} == {"inside-0", "inside-1"}
    assert export_text(folder / "inside.h5", folder) == expected
