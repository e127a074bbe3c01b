"""The batcher against a plain simulation of a model: every token computed in order, limits held, no block lost."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.batcher import Batcher, Sequence
from janus_hpc.kvcache import BlockPool


@dataclass(eq=False)
class Source:
    """A row with a prompt and a number of tokens to generate; token i has the value i."""

    num_prompt: int
    num_new: int
    output: list[int] = field(default_factory=list)

    def num_tokens(self) -> int:
        return self.num_prompt + len(self.output)

    def tokens(self, start: int, stop: int) -> list[int]:
        return list(range(start, stop))


ROWS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12)


@settings(deadline=None)
@given(ROWS, st.integers(11, 30), st.integers(1, 20), st.integers(1, 5), st.sampled_from([1, 4, 7]))
def test_every_row_finishes_within_all_limits(
    rows: list[tuple[int, int]], num_blocks: int, budget: int, places: int, block_size: int
) -> None:
    pool = BlockPool(num_blocks)
    batcher: Batcher[Source] = Batcher(pool, block_size, budget, places)
    sources = [Source(*row) for row in rows if sum(row) <= batcher.capacity_tokens]
    for source in sources:
        batcher.add(Sequence(source))
    stored: dict[int, Sequence[Source]] = {}
    for _ in range(20_000):
        batch = batcher.next_step()
        if not batch.num_tokens:
            break
        check_step(batch.num_tokens, budget, batcher, places)
        assert len(set(batch.slots)) == len(batch.slots)
        for token, position, index, slot in zip(
            batch.token_ids, batch.positions, batch.sequence_ids, batch.slots, strict=True
        ):
            sequence = batch.sequences[index]
            assert token == position
            assert sequence.block_ids[position // block_size] == slot // block_size
            stored[slot // block_size] = sequence
        for index in batch.sampled:
            sequence = batch.sequences[index]
            sequence.source.output.append(0)
            if len(sequence.source.output) == sequence.source.num_new:
                batcher.finish(sequence)
    assert batcher.idle, "rows were left behind"
    assert pool.num_free == num_blocks
    assert all(len(source.output) == source.num_new for source in sources)


def check_step(num_tokens: int, budget: int, batcher: Batcher[Source], places: int) -> None:
    assert num_tokens <= budget
    assert len(batcher.running) <= places
    held = [block for sequence in batcher.running for block in sequence.block_ids]
    assert len(set(held)) == len(held), "a block has two owners"
    assert len(held) + batcher.pool.num_free == batcher.pool.num_blocks


def test_decode_goes_before_prompts() -> None:
    """A long prompt never delays the tokens of rows that are already answering."""
    batcher: Batcher[Source] = Batcher(BlockPool(100), 4, 8, 4)
    first, long = Source(2, 50), Source(100, 1)
    batcher.add(Sequence(first))
    batcher.next_step()
    first.output.append(0)
    batcher.add(Sequence(long))
    for _ in range(5):
        batch = batcher.next_step()
        assert batch.num_tokens == 8
        assert batch.positions[0] == first.num_tokens() - 1
        first.output.append(0)
