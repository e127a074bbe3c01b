"""Text to token ids and back with a model folder's tokenizer.json, as transformers does it.

Knows nothing of logits or of rows.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from janus_hpc.errors import ModelError
from janus_hpc.sampling.chat import ChatTemplate, load_chat_template
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.folder import read_json_object, read_text, special_tokens

# The first start of a long text that is looked at, and how much longer the next one is.
_CHARS_A_TOKEN = 16
_GROWTH = 4


class TooManyTokens(Exception):
    """A text has more tokens than asked for: `num_tokens` of its start alone."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.num_tokens = num_tokens


class TextCodec:
    """A model's tokenizer, chat template and end-of-text ids.

    `vocab_size` is one more than the tokenizer's largest id; the model's logits may be wider.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, eos_token_ids: list[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.eos_token_ids = eos_token_ids
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def load(
        cls, model_dir: Path | str, now: Callable[[], datetime] = datetime.now
    ) -> "TextCodec | None":
        """The folder's codec; None without a tokenizer.json. ModelError: a broken file.

        `now` gives templates the date; pass a fixed one where prompts must not depend on the day.
        """
        folder = Path(model_dir)
        tokenizer = _load_tokenizer(folder)
        if tokenizer is None:
            return None
        template = load_chat_template(folder, now)
        return cls(tokenizer, template, load_eos_token_ids(folder, tokenizer.token_to_id))

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids with the special tokens that tokenizer.json's post-processor adds.

        TooManyTokens: there are far more than `most`, found without tokenising all of the text.
        """
        return self._encode(text, True, most)

    def encode_chat(self, messages: list[dict[str, Any]], most: int | None = None) -> list[int]:
        """Ids of the messages in the chat template. RowRejected: no template, or it refuses.

        TooManyTokens as for `encode`.
        """
        if self._template is None:
            raise RowRejected("messages", "the model folder has no chat template; use prompt")
        return self._encode(self._template.render(messages), False, most)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The ids' text; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool, most: int | None) -> list[int]:
        # A merging tokenizer takes hours for a word of some megabytes, so ever longer starts go first.
        size = len(text) if most is None else _CHARS_A_TOKEN * max(most, 1)
        while size < len(text):
            ids = self._ids(text[:size], False)
            # Where the text is cut, its tokens may be others than those of the whole.
            if most is not None and len(ids) > 2 * most + _CHARS_A_TOKEN:
                raise TooManyTokens(len(ids))
            size *= _GROWTH
        return self._ids(text, add_special_tokens)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            return ids
        except BaseException as error:
            # The library's own faults are no Exception, and its class for them cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            reason = f"the tokenizer fails on this text: {error}"
            raise RowRejected("prompt", reason) from error


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    text = read_text(path)
    if text is None:
        return None
    try:
        tokenizer = Tokenizer.from_str(text)
    # The library raises bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise ModelError(f"{path}: not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _add_missing_tokens(tokenizer, folder)
    return tokenizer


def _add_missing_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Make special what tokenizer_config.json calls so and tokenizer.json does not."""
    path = folder / "tokenizer_config.json"
    decoder = (read_json_object(path) or {}).get("added_tokens_decoder") or {}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    try:
        listed = [AddedToken(**decoder[i]) for i in sorted(decoder, key=int)]
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: added_tokens_decoder: expected id to token: {error}") from error
    tokenizer.add_tokens([token for token in listed if token.content not in known])
    known.update(token.content for token in listed)
    named = dict.fromkeys(special_tokens(folder).values())
    tokenizer.add_special_tokens([token for token in named if token not in known])
