"""The index of an input file as it lies on disk, and its read-only view from any rank.
 Layout: 256 bytes of header (JSON, padded with spaces), then one 17-byte record a row plus one for
the end of the last row, then one pair (row, first line) for every duplicate. Little-endian.
"""

import struct
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from janus_hpc.errors import UsageError

# In a run folder.
INDEX_NAME = "index.bin"
HEADER_BYTES = 256
RECORD = np.dtype([("offset", "<u8"), ("id_hash", "<u8"), ("chat", "?")])
PACK_RECORD = struct.Struct("<QQ?").pack
DUPLICATE = np.dtype([("row", "<u8"), ("first_line", "<u8")])


class IndexHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the index says of the input file as a whole."""

    format: str = "janus-hpc index 1"
    num_rows: int
    num_duplicates: int
    size_bytes: int
    sha256: str

    def encode(self) -> bytes:
        """The header, HEADER_BYTES long."""
        encoded = msgspec.json.encode(self)
        assert len(encoded) <= HEADER_BYTES, f"{len(encoded)=}"
        return encoded.ljust(HEADER_BYTES)


class InputIndex:
    """Where every row of the input file lies, and which rows repeat an id.
     `offsets` u8 [rows + 1] in bytes, `id_hashes` u8 [rows], `chat` bool [rows] (the row holds
    messages): views of a read-only memory map.
    """

    def __init__(self, header: IndexHeader, records: npt.NDArray[Any], pairs: npt.NDArray[Any]):
        self.num_rows = header.num_rows
        self.num_duplicates = header.num_duplicates
        self.size_bytes = header.size_bytes
        self.sha256 = header.sha256
        self.offsets = records["offset"]
        self.id_hashes = records["id_hash"][:-1]
        self.chat = records["chat"][:-1]
        self._duplicate_rows = pairs["row"]
        self._first_lines = pairs["first_line"]

    @classmethod
    def open(cls, index_path: Path) -> Self:
        """Maps the index that `build_index` wrote. Raises UsageError if it is no whole index."""
        try:
            data = np.memmap(index_path, dtype=np.uint8, mode="r")
            header = msgspec.json.decode(bytes(data[:HEADER_BYTES]), type=IndexHeader)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise UsageError(f"{index_path}: not a readable index: {error}") from None
        records_end = HEADER_BYTES + (header.num_rows + 1) * RECORD.itemsize
        expected = records_end + header.num_duplicates * DUPLICATE.itemsize
        if min(header.num_rows, header.num_duplicates) < 0 or len(data) != expected:
            raise UsageError(f"{index_path}: expected {expected} bytes, found {len(data)}")
        records = data[HEADER_BYTES:records_end].view(RECORD)
        return cls(header, records, data[records_end:].view(DUPLICATE))

    def first_line_of(self, index: int) -> int | None:
        """The line of the first row with the id of row `index` if that is an earlier one, else
        None.
        """
        at = int(np.searchsorted(self._duplicate_rows, index))
        if at < self.num_duplicates and int(self._duplicate_rows[at]) == index:
            return int(self._first_lines[at])
        return None
