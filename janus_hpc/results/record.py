"""The bytes of a journal: its header and its records. Opens no files.

header: "JNL1" | u16 version | u16 header bytes | 32-byte fingerprint | u32 launch | u32 world rank
        | u32 crc of all before
record: u32 payload bytes | u32 crc of the length and of all after this field | u8 type
        | u64 sequence | u64 row | payload

Little-endian; crc is zlib's crc32; the sequence counts the records of the file from 0. A payload is
a msgpack `RowResult`, of a PARTIAL record a msgpack `RowProgress`.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

FINGERPRINT_BYTES = 32
MAX_PAYLOAD_BYTES = 1 << 30

_MAGIC = b"JNL1"
_VERSION = 1
_HEADER = struct.Struct("<4sHH32sII")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIBQQ")
_CHECKED = struct.Struct("<BQQ")

HEADER_BYTES = _HEADER.size + _CRC.size
RECORD_BYTES = _RECORD.size


class RecordType(IntEnum):
    """What a record says: a row's results, a row that failed, all before is durable, the file is
    complete, the tokens of a row in flight.
    """

    ROW = 1
    FAIL = 2
    COMMIT = 3
    CLOSE = 4
    PARTIAL = 5


class Header(NamedTuple):
    """Whose journal it is."""

    fingerprint: bytes
    launch: int
    world_rank: int


class RecordHead(NamedTuple):
    """The fixed part of a record."""

    num_bytes: int
    crc: int
    type: int
    sequence: int
    row: int


def encode_header(header: Header) -> bytes:
    """The first HEADER_BYTES of a journal."""
    assert len(header.fingerprint) == FINGERPRINT_BYTES, f"{len(header.fingerprint)=}"
    packed = _HEADER.pack(_MAGIC, _VERSION, HEADER_BYTES, *header)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_header(data: bytes) -> Header | None:
    """The header in the first bytes of a journal, None if it is torn or damaged."""
    if len(data) < HEADER_BYTES:
        return None
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    magic, version, num_bytes, fingerprint, launch, world_rank = _HEADER.unpack_from(data)
    if (magic, version, num_bytes) != (_MAGIC, _VERSION, HEADER_BYTES):
        return None
    if zlib.crc32(data[: _HEADER.size]) != crc:
        return None
    return Header(fingerprint, launch, world_rank)


def encode_record(kind: RecordType, sequence: int, row: int, payload: bytes) -> bytes:
    """One record."""
    checked = _CHECKED.pack(kind, sequence, row)
    crc = _crc_of(len(payload), checked, payload)
    return _RECORD.pack(len(payload), crc, kind, sequence, row) + payload


def decode_head(data: bytes) -> RecordHead | None:
    """The fixed part in the first bytes of `data`, None if they cannot be one; its crc is not
    checked.
    """
    if len(data) < RECORD_BYTES:
        return None
    head = RecordHead(*_RECORD.unpack_from(data))
    if head.num_bytes > MAX_PAYLOAD_BYTES or not RecordType.ROW <= head.type <= RecordType.PARTIAL:
        return None
    return head


def is_intact(head: RecordHead, payload: bytes) -> bool:
    """True if `payload` is all of it and the checksum holds."""
    if len(payload) != head.num_bytes:
        return False
    checked = _CHECKED.pack(head.type, head.sequence, head.row)
    return _crc_of(head.num_bytes, checked, payload) == head.crc


def _crc_of(num_bytes: int, checked: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(checked, zlib.crc32(_CRC.pack(num_bytes))))
