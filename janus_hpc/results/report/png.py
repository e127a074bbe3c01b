"""Writes small images of few colours as PNG inside a data address, for heat maps of many cells."""

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3


def data_address(cells_HW: npt.NDArray[np.uint8], colours_C3: npt.NDArray[np.uint8]) -> str:
    """An image of H x W pixels, each an index into at most 256 colours (red, green, blue)."""
    height, width = cells_HW.shape
    head = struct.pack(">IIBBBBB", width, height, 8, _INDEXED, 0, 0, 0)
    # Every line begins with its filter, 0 for none.
    lines = np.hstack([np.zeros((height, 1), np.uint8), cells_HW]).tobytes()
    image = _SIGNATURE + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", head),
            (b"PLTE", colours_C3.astype(np.uint8).tobytes()),
            (b"IDAT", zlib.compress(lines, 9)),
            (b"IEND", b""),
        )
    )
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
