"""The tag of a message: what its receiver tells it by, packed into the few bits that every MPI has.

Two messages under way between two ranks never share a tag.
"""

from janus_hpc.comm.links.link import TAG_BITS

_CHUNK_BITS, _MICROBATCH_BITS = 3, 2
_MAX_SOURCES = 1 << (TAG_BITS - _CHUNK_BITS - _MICROBATCH_BITS - 1)


def message_tag(comes_back: bool, microbatch: int, source: int, chunk: int) -> int:
    """The tag of a chunk of the group `source`, of tokens or, coming back, of sums."""
    assert 0 <= chunk < 1 << _CHUNK_BITS and 0 <= microbatch < 1 << _MICROBATCH_BITS
    assert 0 <= source < _MAX_SOURCES, f"{source=}: more groups than tags have room for"
    tag = source << _CHUNK_BITS | chunk
    return (tag << _MICROBATCH_BITS | microbatch) << 1 | comes_back
