"""What the sampler knows of one sample: parameters, random key, tokens, counts for penalties.

Plain Python; knows nothing of logits, text or devices.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from janus_hpc.core import SamplingParams
from janus_hpc.sampling.rng import uniform

# Temperatures below this mean greedy, as in vLLM.
GREEDY_TEMPERATURE = 1e-5


@dataclass(slots=True, kw_only=True)
class SampleState:
    """One of a row's n samples.

    `seed` is the row's or else the run's, `row_key` tells rows apart, `vocab_size` is the width of
    the model's logits. The samples of a row may share `prompt_token_ids`, never changed here.
    """

    params: SamplingParams
    seed: int
    row_key: int
    sample: int
    prompt_token_ids: list[int]
    eos_token_ids: Collection[int]
    vocab_size: int
    output_token_ids: list[int] = field(default_factory=list)
    _output_counts: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _seen_ids: dict[int, None] = field(default_factory=dict, init=False, repr=False)
    _num_counted: int = field(default=0, init=False, repr=False)
    _num_seen: int = field(default=0, init=False, repr=False)

    def append(self, token_id: int) -> None:
        """Add a chosen token to the output."""
        self.output_token_ids.append(token_id)

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken rather than drawn."""
        return self.params.temperature < GREEDY_TEMPERATURE

    @property
    def penalised(self) -> bool:
        """Whether repetition, frequency or presence penalty changes the logits."""
        p = self.params
        return bool(p.repetition_penalty != 1.0 or p.frequency_penalty or p.presence_penalty)

    def next_uniform(self) -> float:
        """The random number of the next output position; the same until a token is added."""
        return uniform(self.seed, self.row_key, self.sample, len(self.output_token_ids))

    def output_counts(self) -> dict[int, int]:
        """How often each token is in the output so far; only new tokens are counted."""
        counts = self._output_counts
        for token_id in self.output_token_ids[self._num_counted :]:
            counts[token_id] = counts.get(token_id, 0) + 1
        self._num_counted = len(self.output_token_ids)
        return counts

    def seen_ids(self) -> Collection[int]:
        """The distinct tokens of prompt and output so far."""
        if not self._seen_ids:
            self._seen_ids.update(dict.fromkeys(self.prompt_token_ids))
        self._seen_ids.update(dict.fromkeys(self.output_token_ids[self._num_seen :]))
        self._num_seen = len(self.output_token_ids)
        return self._seen_ids.keys()

    def held_back_ids(self) -> list[int]:
        """The end-of-text and stop tokens that may not come yet, for `min_tokens`."""
        if len(self.output_token_ids) >= self.params.min_tokens:
            return []
        ids = {*self.eos_token_ids, *self.params.stop_token_ids}
        return sorted(i for i in ids if 0 <= i < self.vocab_size)
