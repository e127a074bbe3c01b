"""What the Triton experts need before they multiply: entries by slot, and tokens rounded, with their carries.

Importing it needs triton. Knows no model.

Legend: T tokens, J choices a token, S slots, P = T * J entries (token, choice), D hidden.
"""

import triton
import triton.language as tl

# Entries and columns a program of `group_kernel` takes at a time.
BLOCK_P, BLOCK_D = 1024, 1024
# 1.5 * 2^(n + CARRY_SHIFT) is the carry of a token with 2^n above its largest |x|: 52 - QUANTUM_BITS.
CARRY_SHIFT = tl.constexpr(52 - 38)


@triton.jit  # type: ignore[untyped-decorator]
def rounded(x, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 x rounded to dtype, to nearest even, still as float32."""
    if dtype == tl.bfloat16:
        # By bits: Triton's interpreter would cut them off. NaN stays as it is.
        bits = x.to(tl.uint32, bitcast=True)
        number = (bits & 0x7FFFFFFF) <= 0x7F800000
        bits = tl.where(number, bits, 0)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        out = tl.where(number, bits.to(tl.float32, bitcast=True), x)
    elif dtype == tl.float16:
        out = x.to(tl.float16).to(tl.float32)
    else:
        out = x
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _list_entries(  # type: ignore[no-untyped-def]
    slots_ptr, entries_ptr, ranges_ptr, slot, num_entries, BLOCK_P: tl.constexpr
):
    """This slot's range in the list of entries by slot, and its part of the list, ascending."""
    lane = tl.arange(0, BLOCK_P)
    before = tl.zeros((BLOCK_P,), tl.int32)
    for start in range(0, num_entries, BLOCK_P):
        inside = start + lane < num_entries
        its = tl.load(slots_ptr + start + lane, mask=inside, other=-1)
        before += ((its >= 0) & (its < slot)).to(tl.int32)
    end = tl.sum(before, axis=0)
    tl.store(ranges_ptr + 2 * slot, end)
    for start in range(0, num_entries, BLOCK_P):
        inside = start + lane < num_entries
        its = tl.load(slots_ptr + start + lane, mask=inside, other=-1)
        mine = (its == slot).to(tl.int32)
        place = end + tl.cumsum(mine, axis=0) - 1
        tl.store(entries_ptr + place, start + lane, mask=mine > 0)
        end += tl.sum(mine, axis=0)
    tl.store(ranges_ptr + 2 * slot + 1, end)


@triton.jit  # type: ignore[untyped-decorator]
def _prepare_token(  # type: ignore[no-untyped-def]
    x_ptr,
    x_stride,
    rounded_ptr,
    carry_ptr,
    token,
    hidden,
    ROUND: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The token's carry: 1.5 * 2^52 quanta of `Ops.experts`; and its row in the weights' dtype."""
    lane = tl.arange(0, BLOCK_D)
    largest = tl.zeros((BLOCK_D,), tl.int32)
    for start in range(0, hidden, BLOCK_D):
        inside = start + lane < hidden
        x = tl.load(x_ptr + token * x_stride + start + lane, mask=inside, other=0.0)
        largest = tl.maximum(largest, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        if ROUND:
            dtype = rounded_ptr.dtype.element_ty
            here_ptr = rounded_ptr + token * hidden + start + lane
            tl.store(here_ptr, rounded(x, dtype).to(dtype), mask=inside)
    # Floats order as their bits do. The exponent e is the least one with max |x| < 2^e; a
    # subnormal's comes from its bits as a number, which float32 holds exactly.
    top = tl.max(largest, axis=0)
    small = top.to(tl.float32).to(tl.int32, bitcast=True)
    exponent = tl.where(top >= 0x00800000, (top >> 23) - 126, (small >> 23) - 275)
    exponent = tl.where(top >= 0x7F800000, 128, tl.where(top == 0, 0, exponent))
    bits = (exponent.to(tl.int64) + (CARRY_SHIFT + 1023)) << 52 | 1 << 51
    tl.store(carry_ptr + token, bits.to(tl.float64, bitcast=True))


@triton.jit(do_not_specialize=["num_slots", "num_entries"])  # type: ignore[untyped-decorator]
def group_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_stride,
    rounded_ptr,
    carry_ptr,
    slots_ptr,
    entries_ptr,
    ranges_ptr,
    num_slots,
    num_entries,
    hidden,
    ROUND: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a slot, each counting for itself, then one a token."""
    program = tl.program_id(0)
    if program < num_slots:
        _list_entries(slots_ptr, entries_ptr, ranges_ptr, program, num_entries, BLOCK_P)
    else:
        token = (program - num_slots).to(tl.int64)
        _prepare_token(x_ptr, x_stride, rounded_ptr, carry_ptr, token, hidden, ROUND, BLOCK_D)
