"""What the documents say is true: commands run, links lead somewhere, folders named exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.launcher import TIME_LIMIT_S, environment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Set-up and the test suite itself, which are running already.
SKIPPED = ("bash tests/run.sh", "pip install", "bash jobs/demo.sh")
EXPECTED_CODES = {"infer jobs/prompts.jsonl": {3}, "--job jobs/demo_tiny_cpu4.toml": {3}}
# This machine may give reason for warnings.
EXPECTED_CODES["janus-hpc doctor"] = {0, 1}


def readme_commands() -> list[str]:
    """Lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(SKIPPED)]


def test_the_readme_has_commands() -> None:
    assert len(readme_commands()) >= 5


def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    """In an empty folder that sees the repository's jobs/ and janus_hpc/, as a newcomer's clone does."""
    for name in ("jobs", "janus_hpc"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in readme_commands():
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment() | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        codes = next((its for part, its in EXPECTED_CODES.items() if part in command), {0})
        assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stderr[-3000:]}"


def test_demo_script_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "jobs/demo.sh"), str(tmp_path / "out")],
        cwd=tmp_path,
        env=environment() | {"VIRTUAL_ENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "prompts.h5").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:docs|jobs|tests|slurm|janus_hpc|kernels)/[\w./-]*)", text)
    missing = [name for name in named if not (ROOT / name.rstrip("./")).exists()]
    assert not missing, missing
