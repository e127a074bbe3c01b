"""A hash that tells one checkpoint from another without reading a hundred gigabytes.

Small files are hashed whole; of large ones the header, the size and evenly spaced samples.
"""

import hashlib
from pathlib import Path

from janus_hpc.errors import ModelError

WHOLE_FILE_BYTES = 64 << 20
SAMPLE_BYTES = 64 << 10
NUM_SAMPLES = 64
SUFFIXES = (".json", ".safetensors", ".jinja")


def fingerprint(model_dir: Path) -> str:
    """Hex sha256 over the folder's configuration, tokenizer and weight files, in sorted order of names."""
    digest = hashlib.sha256()
    for path in sorted(p for p in model_dir.iterdir() if p.suffix in SUFFIXES and p.is_file()):
        try:
            _add_file(digest, path)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}:{size}\n".encode())
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
            return
        digest.update(file.read(SAMPLE_BYTES))
        for index in range(NUM_SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
