"""The doctor under a real srun: where ranks find each other, and where each process is alone."""

import json
import re
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster

LIMIT_S = 150.0
BODY = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --time=5 --output=out.txt --error=err.txt
srun --mpi={mpi} janus-hpc doctor --only mpi,ranks,slurm,clocks,output --json found.json
echo "exit $?"
"""


def run(cluster: Cluster, folder: Path, mpi: str) -> tuple[str, str, list[dict[str, Any]]]:
    (folder / "job.sh").write_text(BODY.format(mpi=mpi))
    job = cluster.submit(folder, "job.sh")
    cluster.wait_for(job, LIMIT_S)
    out, err = ((folder / name).read_text() for name in ("out.txt", "err.txt"))
    return out, err, json.loads((folder / "found.json").read_text())


def test_ranks_of_srun(cluster: Cluster, tmp_path: Path) -> None:
    out, err, found = run(cluster, tmp_path, "pmi2")
    texts = {its["check"]: its["what"] for its in found}
    assert "4 ranks, started by slurm" in texts["mpi"], out + err
    minutes = float(texts["slurm"].split("ends in ")[1].split(" minutes")[0])
    assert 3 < minutes <= 5
    assert not any(its["level"] == "error" for its in found), found


def test_processes_that_srun_leaves_alone(cluster: Cluster, tmp_path: Path) -> None:
    """--mpi=none: four processes, each a world of one; it is said once, and all have exit code 2."""
    out, err, found = run(cluster, tmp_path, "none")
    bad = [its for its in found if its["level"] == "error"]
    assert [its["check"] for its in bad] == ["mpi"]
    assert "slurm started 4 processes" in bad[0]["what"] and "--mpi=" in bad[0]["fix"]
    assert out.count("slurm started 4") == out.count("doctor: ") == 1, out + err
    assert out.splitlines()[-1] == "exit 2"
    assert set(re.findall(r"exit code (\d+)", err)) == {"2"}, err
    assert "Traceback" not in err
