"""Opens results files and reads slices of their columns; whatever HDF5 makes of a damaged file
becomes a JournalError.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.schema import SCHEMA_NAME, SCHEMA_VERSION
from janus_hpc.routing.storage import H5_ERRORS, check_size

# A dataset: two chunks, so that reading across a border decompresses neither twice.
_CHUNK_CACHE_BYTES = 2 << 20


def open_results(path: Path) -> h5py.File:
    """Opens a results file of a known schema for reading. Raises UsageError or JournalError."""
    if not path.exists():
        raise UsageError(f"{path}: no such results file")
    if not path.is_file():
        raise UsageError(f"{path}: expected a results file")
    try:
        file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except H5_ERRORS as error:
        raise JournalError(f"{path}: not a readable HDF5 file: {error}") from None
    try:
        _check_schema(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_schema(path: Path, file: h5py.File) -> None:
    try:
        found = file.attrs.get("schema_name"), file.attrs.get("schema_version")
    except H5_ERRORS as error:
        raise JournalError(f"{path}: damaged attributes: {error}") from None
    if found[0] != SCHEMA_NAME:
        raise JournalError(f"{path}: no Janus-HPC results file: schema_name is {found[0]!r}")
    if found[1] != SCHEMA_VERSION:
        raise JournalError(
            f"{path}: schema_version {found[1]}; this program reads {SCHEMA_VERSION}; read it"
            " with the version of Janus-HPC that wrote it, or run the job again"
        )


class Columns:
    """The datasets of an open results file by name, read in slices.

    Datasets stay open, since HDF5 drops the decompressed chunks of a dataset when it is closed.
    """

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self._datasets: dict[str, h5py.Dataset] = {}

    def dataset(self, name: str) -> h5py.Dataset:
        """The dataset `name`. Raises JournalError."""
        if name not in self._datasets:
            try:
                dataset = self.file[name]
                check_size(dataset)
            except H5_ERRORS as error:
                raise self._damage(name, f"cannot be opened: {error}") from None
            except JournalError as error:
                raise self._damage(name, str(error)) from None
            self._datasets[name] = dataset
        return self._datasets[name]

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Items start .. stop - 1 of the dataset `name`. Raises JournalError."""
        dataset = self.dataset(name)
        try:
            data: npt.NDArray[Any] = dataset[start:stop]
        except H5_ERRORS as error:
            raise self._damage(name, f"is damaged: {error}") from None
        if len(data) != stop - start:
            raise self._damage(name, f"ends at {start + len(data)}, expected {stop}")
        return data

    def read_ragged(
        self, values: str, offsets: str, start: int, stop: int
    ) -> tuple[npt.NDArray[Any], list[int]]:
        """Items start .. stop - 1 of a ragged column: their values, and offsets into these values.

        `values` and `offsets` name its two datasets. Raises JournalError.
        """
        bounds = self.read(offsets, start, stop + 1).astype(np.int64)
        if bounds[0] < 0 or np.any(bounds[1:] < bounds[:-1]):
            raise self._damage(offsets, f"falls between {start} and {stop}")
        return self.read(values, int(bounds[0]), int(bounds[-1])), (bounds - bounds[0]).tolist()

    def read_texts(self, name: str, start: int, stop: int, *, errors: str = "strict") -> list[str]:
        """Items start .. stop - 1 of the ragged text column `name`; `errors` as bytes.decode has it.

        Raises JournalError, and UnicodeDecodeError for strict.
        """
        values, offsets = self.read_ragged(f"{name}_values", f"{name}_offsets", start, stop)
        data = values.tobytes()
        return [data[a:b].decode(errors=errors) for a, b in pairwise(offsets)]

    def _damage(self, name: str, what: str) -> JournalError:
        return JournalError(f"{self.file.filename}: {name} {what}")
