"""How whole arrays lie in the HDF5 files: compressed, checksummed, with their hash beside them.

Knows nothing of what the arrays mean.
"""

import hashlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from janus_hpc.errors import JournalError

GZIP_LEVEL = 4
STORAGE = {
    "compression": "gzip",
    "compression_opts": GZIP_LEVEL,
    "shuffle": True,
    "fletcher32": True,
    "track_times": False,
}
# The oldest format whose metadata carries checksums throughout.
LIBVER = ("v110", "v110")

# What h5py raises on files that are damaged or lack a part.
H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)

HASH_NAME = "sha256"

# Deflate makes 1032 bytes of one at most.
_MAX_RATIO = 1100


def write_array(group: h5py.Group, name: str, dtype: str, values: npt.ArrayLike) -> None:
    """Writes a whole array of any shape; one that is empty takes no chunks."""
    data = np.ascontiguousarray(values, np.dtype(dtype))
    storage = STORAGE if data.size else {"track_times": False}
    dataset = group.create_dataset(name, data=data, **storage)
    write_hash(dataset, hashlib.sha256(data.tobytes()).hexdigest())


def read_array(group: h5py.Group, name: str, dtype: str) -> npt.NDArray[Any]:
    """Reads a whole array. Raises JournalError, naming the array but no file, if it is not what was
    written, and what h5py raises (H5_ERRORS) if it cannot be read.
    """
    dataset = group[name]
    try:
        check_type(dataset, dtype)
        check_size(dataset)
        data: npt.NDArray[Any] = dataset[()]
        check_hash(dataset, hashlib.sha256(data.tobytes()).hexdigest())
    except JournalError as error:
        raise JournalError(f"{dataset.name.lstrip('/')}: {error}") from None
    return data


def write_hash(dataset: h5py.Dataset, digest: str) -> None:
    """Keeps the SHA-256 of a dataset's uncompressed bytes, in hexadecimal."""
    dataset.attrs[HASH_NAME] = np.bytes_(digest)


def check_type(dataset: h5py.Dataset, dtype: str) -> None:
    """Raises JournalError if the dataset does not hold `dtype`."""
    if dataset.dtype != np.dtype(dtype):
        raise JournalError(f"expected type {dtype}, found {dataset.dtype.str}")


def check_size(dataset: h5py.Dataset) -> None:
    """Raises JournalError if the dataset says it is larger than what is stored of it can be: reading it would fill
    the memory with nothing.
    """
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _MAX_RATIO * stored:
        raise JournalError(f"has shape {dataset.shape}, but only {stored} bytes are stored")


def check_hash(dataset: h5py.Dataset, digest: str) -> None:
    """Raises JournalError if the dataset was written with another hash than `digest`."""
    expected = bytes(dataset.attrs[HASH_NAME]).decode()
    if digest != expected:
        raise JournalError(f"content hashes to {digest[:16]}..., expected {expected[:16]}...")
