"""A checkpoint that is written or cut while a run reads it is refused: mapped files give zeros for a lost end."""

import shutil
from pathlib import Path

import pytest

from janus_hpc.demo import demo_model_dir
from janus_hpc.errors import ModelError
from janus_hpc.weights.checkpoint import Checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_dir(), tmp_path / "model"))


def test_a_file_cut_after_it_was_read_is_refused(model: Path) -> None:
    with Checkpoint(model) as checkpoint:
        name = checkpoint.names()[0]
        checkpoint.read(name, checkpoint.shape(name))
        checkpoint.check_unchanged()
        checkpoint.read(name, checkpoint.shape(name))
        path = checkpoint.file_of(name)
        num_bytes = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(num_bytes - 1)
        told = f"{path.name}: changed while it was read, from {num_bytes} to {num_bytes - 1} bytes"
        with pytest.raises(ModelError, match=told):
            checkpoint.check_unchanged()


def test_what_changes_after_all_is_read_is_nobodys_matter(model: Path) -> None:
    with Checkpoint(model) as checkpoint:
        name = checkpoint.names()[0]
        checkpoint.read(name, checkpoint.shape(name))
        checkpoint.check_unchanged()
        checkpoint.file_of(name).unlink()
        checkpoint.check_unchanged()
