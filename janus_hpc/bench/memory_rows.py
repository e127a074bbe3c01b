"""Rows made up in memory: random prompts of one length, greedy answers of one length. For benchmarks."""

import numpy as np

from janus_hpc.core import Row, SamplingParams
from janus_hpc.engine.active import ActiveRow


class MemoryRows:
    """A `RowSource`: row i has the same prompt whatever the split or the batch size."""

    def __init__(self, vocab: int, num_prompt_tokens: int, num_new_tokens: int) -> None:
        self.vocab = vocab
        self.num_prompt_tokens = num_prompt_tokens
        self.params = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)

    def prompt(self, index: int) -> list[int]:
        generator = np.random.default_rng(index)
        ids: list[int] = generator.integers(0, self.vocab, self.num_prompt_tokens).tolist()
        return ids

    def admit(self, index: int) -> ActiveRow:
        token_ids = self.prompt(index)
        row = Row(
            index=index,
            line=index + 1,
            id=f"row-{index}",
            explicit_id=False,
            params=self.params,
            token_ids=token_ids,
        )
        longest = self.num_prompt_tokens + self.params.max_tokens
        return ActiveRow(row, token_ids, None, [], self.vocab, longest, 0)
