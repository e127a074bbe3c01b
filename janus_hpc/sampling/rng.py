"""Counter-based random numbers: one uniform for one (seed, row, sample, position), with no state.

Philox4x64-10, bit for bit numpy.random.Philox with the key (seed, row_key) and the counter
(sample, position, 0, 0); written out because making numpy's object costs three times as much.
"""

_MASK = 2**64 - 1
_MULTIPLIER_0 = 0xD2E7470EE14C6C93
_MULTIPLIER_1 = 0xCA5A826395121157
_WEYL_0 = 0x9E3779B97F4A7C15
_WEYL_1 = 0xBB67AE8584CAA73B
_NUM_ROUNDS = 10

UNIFORM_BITS = 53


def uniform(seed: int, row_key: int, sample: int, position: int) -> float:
    """A multiple of 2**-53 in [0, 1) made from the four numbers alone, each modulo 2**64."""
    # numpy advances the counter before its first block.
    counter = (((position & _MASK) << 64) | (sample & _MASK)) + 1
    word = _philox(
        seed & _MASK, row_key & _MASK, counter & _MASK, (counter >> 64) & _MASK, counter >> 128
    )
    return float(word >> (64 - UNIFORM_BITS)) * 2.0**-UNIFORM_BITS


def _philox(key_0: int, key_1: int, c0: int, c1: int, c2: int) -> int:
    """First 64-bit word of the block at counter (c0, c1, c2, 0)."""
    c3 = 0
    for _ in range(_NUM_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0 = (product_1 >> 64) ^ c1 ^ key_0
        c1 = product_1 & _MASK
        c2 = (product_0 >> 64) ^ c3 ^ key_1
        c3 = product_0 & _MASK
        key_0 = (key_0 + _WEYL_0) & _MASK
        key_1 = (key_1 + _WEYL_1) & _MASK
    return c0
