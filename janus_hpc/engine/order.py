"""The one order in which both roles take a step's exchanges: every sparse layer, every microbatch.

Both roles iterate the same generator, so they cannot come to differ.
"""

from collections.abc import Iterator, Sequence


def exchange_order(
    sparse_layers: Sequence[int], num_microbatches: int
) -> Iterator[tuple[int, int]]:
    """(layer, microbatch) pairs of one step."""
    for layer in sparse_layers:
        for microbatch in range(num_microbatches):
            yield layer, microbatch
