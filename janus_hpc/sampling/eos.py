"""Which tokens end a text: from the model folder's files, as vLLM finds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_hpc.errors import ModelError
from janus_hpc.sampling.folder import read_json_object, special_tokens


def load_eos_token_ids(
    model_dir: Path | str, token_to_id: Callable[[str], int | None] | None = None
) -> list[int]:
    """The end-of-text ids in rising order: generation_config.json's and the tokenizer's.

    config.json is asked only where generation_config.json has none. `token_to_id` looks up the
    tokenizer's eos token; without it (no tokenizer.json) only the two configs count.
    ModelError: a value that is neither an id nor a list of ids.
    """
    folder = Path(model_dir)
    ids = _ids_in(folder / "generation_config.json") or _ids_in(folder / "config.json")
    if token_to_id is not None:
        eos_token = special_tokens(folder).get("eos_token")
        token_id = token_to_id(eos_token) if eos_token is not None else None
        if token_id is not None:
            ids = [*ids, token_id]
    return sorted(set(ids))


def _ids_in(path: Path) -> list[int]:
    value: Any = (read_json_object(path) or {}).get("eos_token_id")
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise ModelError(f"{path}: eos_token_id: expected an id or a list of ids, got {value!r}")
    return ids
