"""The short form of the fault campaign: one fault of each of eleven kinds."""

import json
import subprocess
import sys
from pathlib import Path

from tests.faults.input_faults import HOUR_S

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 5


def test_faults_of_every_family_lose_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.faults", "--short", "--seed", str(SEED)]
    kept = str(tmp_path / "kept")
    command += ["--no-slurm", "--jobs", "3", "--json", str(report), "--keep", kept]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HOUR_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    cases = json.loads(report.read_text())["cases"]
    # Mounting wants root.
    assert len(cases) >= 10
    for case in cases:
        assert (case["lost"], case["doubled"], case["differing"]) == (0, 0, 0)
