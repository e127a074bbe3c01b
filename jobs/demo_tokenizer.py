"""The demo model's tokenizer and chat template: bytes, special tokens and a few whole words.

Letters and digits stay single tokens, so that tasks on letters see them: every merge builds a
word that begins with a capital letter (a keyword, a day, a month) or joins punctuation and a space.
"""

from demo_words import DAYS, KEYWORDS, MONTHS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, END_OF_TURN, SYSTEM, USER, ASSISTANT)

# Content may be a string or the parts of an OpenAI message.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def byte_letters() -> list[str]:
    """Return the printable stand-in of each byte 0..255 that byte-level vocabularies use."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in keep]
    return [chr(b) if b in keep else chr(256 + moved.index(b)) for b in range(256)]


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer: special tokens first, then bytes in order, then merged words."""
    letters = byte_letters()
    space = letters[ord(" ")]
    merges = [(":", space), (",", space), (space, "=")]
    for word in (*KEYWORDS, *DAYS, *MONTHS):
        merges += [(word[:i], word[i]) for i in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    tokens = [*SPECIAL_TOKENS, *letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return tokenizer
