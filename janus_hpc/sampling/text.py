"""A sample's text and its end: stop strings, stop tokens, lengths, and detokenisation.

Text is decoded token by token only where stop strings must be looked for, else once when asked for.
"""

from janus_hpc.core import FinishReason
from janus_hpc.sampling.prompt import check_params
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.tokenizer import TextCodec

# What byte-level decoders give for the first bytes of a character whose last ones have not come.
_INCOMPLETE = "\ufffd"


class OutputTracker:
    """Follows one sample's tokens until it ends.

    `codec` is None for a folder without a tokenizer: text then stays empty and stop strings are
    RowRejected. `max_total_len` bounds prompt and output together.
    """

    def __init__(self, state: SampleState, codec: TextCodec | None, max_total_len: int) -> None:
        check_params(state.params, codec, state.vocab_size)
        self.state = state
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._codec = codec
        self._max_total_len = max_total_len
        self._text_tokens: int | None = None
        self._seen: str | None = None
        self._stream = _Stream(codec, state) if codec is not None and state.params.stop else None

    @property
    def token_ids(self) -> list[int]:
        """All output tokens, the stop token included."""
        return self.state.output_token_ids

    @property
    def text(self) -> str:
        """The output's text: without a stop token, and cut at a stop string, unless included."""
        if self._codec is None:
            return ""
        ids = self.token_ids[: self._text_tokens]
        whole = self._codec.decode(ids, self.state.params.skip_special_tokens)
        return whole if self._seen is None else self._cut(whole, self._seen)

    def _cut(self, whole: str, seen: str) -> str:
        """The text up to the stop string that ends `seen`, the text found token by token."""
        stop = str(self.stop_reason)
        end = len(seen)
        if not whole.startswith(seen):
            # Some decoders change earlier text when later bytes turn out to be no UTF-8.
            end = whole.find(stop) + len(stop)
            if stop not in whole:
                whole, end = seen, len(seen)
        included = self.state.params.include_stop_str_in_output
        return whole[: end if included else end - len(stop)]

    def push(self, token_id: int) -> FinishReason | None:
        """Append a chosen token to the state; why the sample ends with it, or None."""
        assert self.finish_reason is None, (self.finish_reason, token_id)
        self.state.append(token_id)
        is_stop_token = self._is_stop_token(token_id)
        if is_stop_token and not self.state.params.include_stop_str_in_output:
            self._text_tokens = len(self.token_ids) - 1
        elif self._stream is not None:
            self._find_stop_string(self._stream.push(token_id))
        if self._seen is not None or is_stop_token:
            self.finish_reason = FinishReason.STOP
        elif self._is_full():
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason

    def _is_stop_token(self, token_id: int) -> bool:
        params = self.state.params
        if len(self.token_ids) < params.min_tokens:
            return False
        if not params.ignore_eos and token_id in self.state.eos_token_ids:
            return True
        if token_id in params.stop_token_ids:
            self.stop_reason = token_id
            return True
        return False

    def _is_full(self) -> bool:
        num_output = len(self.token_ids)
        num_total = len(self.state.prompt_token_ids) + num_output
        return num_output >= self.state.params.max_tokens or num_total >= self._max_total_len

    def _find_stop_string(self, num_new: int) -> None:
        """Look for the stop string that is complete first; among equals the first of the list."""
        params = self.state.params
        if not num_new or len(self.token_ids) <= params.min_tokens:
            return
        assert self._stream is not None
        text = self._stream.text
        found = []
        for order, stop in enumerate(params.stop):
            start = text.find(stop, max(0, len(text) - num_new - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), order))
        if found:
            end, order = min(found)
            self.stop_reason = params.stop[order]
            self._seen = text[:end]


class _Stream:
    """Text that grows by whole characters as tokens come."""

    def __init__(self, codec: TextCodec, state: SampleState) -> None:
        self.text = ""
        self._decode = codec.decode
        self._skip_special_tokens = state.params.skip_special_tokens
        # Ids from the last piece of text on, and how many of them that piece is made of: decoders
        # treat the first token of a text differently, so a piece needs the one before it.
        self._ids: list[int] = []
        self._num_context = 0

    def push(self, token_id: int) -> int:
        """Take a token; how many characters it completed."""
        self._ids.append(token_id)
        context = self._decode(self._ids[: self._num_context], self._skip_special_tokens)
        longer = self._decode(self._ids, self._skip_special_tokens)
        if len(longer) <= len(context) or longer.endswith(_INCOMPLETE):
            return 0
        piece = longer[len(context) :]
        self.text += piece
        self._ids = self._ids[self._num_context :]
        self._num_context = len(self._ids)
        return len(piece)
