"""Reading the small JSON files of a model folder that concern text. Knows nothing of tokenizers."""

from pathlib import Path
from typing import Any

import msgspec

from janus_hpc.errors import ModelError

# The named tokens that a chat template may use as variables and that are special to the tokenizer.
SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_text(path: Path) -> str | None:
    """The file's UTF-8 text; None if there is no such file. ModelError: unreadable, not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The file's JSON object; None where there is no such file. ModelError: anything else."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path}: expected a JSON object: {error}") from error


def special_tokens(model_dir: Path) -> dict[str, str]:
    """Name to text of the folder's named special tokens, from tokenizer_config.json.

    Older folders, without `added_tokens_decoder`, name them in special_tokens_map.json.
    """
    config = read_json_object(model_dir / "tokenizer_config.json") or {}
    if "added_tokens_decoder" not in config:
        config = {**config, **(read_json_object(model_dir / "special_tokens_map.json") or {})}
    found = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found
