"""Reading config.json: typed access to its keys with messages that name file, key, expected and found.

Knows no family; the rotary part is here because all families share its two spellings.
"""

import json
import os
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeVar

from janus_hpc.errors import ModelError
from janus_hpc.models.spec import YarnSpec

T = TypeVar("T", int, float, bool, str)
REQUIRED: Any = object()
_LARGE = 1 << 1000
_MOST_SHOWN = 200
_MOST_YARN = 1e9
# Beyond these a model is a mistake, and its list of tensors would fill the memory; 2**31 - 1 for other keys.
_MOST = {
    "num_hidden_layers": 4096,
    "max_position_embeddings": 1 << 24,
    # Routes are kept as 16-bit numbers.
    "num_experts": 32767,
    "num_local_experts": 32767,
    "n_routed_experts": 32767,
    "num_nextn_predict_layers": 64,
}


class ConfigFile:
    """One config.json. Errors are ModelError naming the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def load(cls, model_dir: Path) -> "ConfigFile":
        path = model_dir / "config.json"
        if not os.path.isdir(model_dir):
            raise ModelError(f"model folder {model_dir} does not exist or is not a folder")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"{path} is missing: {model_dir} is not a model folder") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls(path, values)

    def get(self, key: str, kind: type[T], default: T | None = REQUIRED) -> T:
        """The key's value as `kind`; an int stands for a float, which is finite; null counts as absent."""
        value = self.values.get(key)
        if value is None:
            if default is REQUIRED:
                raise ModelError(f"{self.path}: key {key!r} is missing (expected {kind.__name__})")
            return default  # type: ignore[return-value]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            # An int may have more digits than any float.
            value = float(value) if abs(value) < _LARGE else inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, kind.__name__)
        if isinstance(value, float) and not isfinite(value):
            raise self.error(key, "a finite number")
        most = _MOST.get(key, 2**31 - 1)
        if isinstance(value, int) and abs(value) > most:
            raise self.error(key, f"an integer of at most {most}")
        return value

    def positive(self, key: str, default: int | None = REQUIRED) -> int:
        """An integer of at least 1."""
        value = self.get(key, int, default)
        if value < 1:
            raise self.error(key, "an integer of at least 1")
        return value

    def error(self, key: str, expected: str) -> ModelError:
        found = repr(self.values.get(key))
        if len(found) > _MOST_SHOWN:
            found = found[:_MOST_SHOWN] + "..."
        return ModelError(f"{self.path}: key {key!r}: expected {expected}, found {found}")

    def expect(self, key: str, default: T, allowed: tuple[T, ...]) -> None:
        """Refuse a value this package does not implement, naming those it does."""
        value = self.get(key, type(default), default)
        if value not in allowed:
            raise self.error(key, f"one of {list(allowed)}")

    def rope(self) -> tuple[float, YarnSpec | None]:
        """Base frequency and YaRN scaling, from `rope_parameters` or the older `rope_scaling`."""
        part = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(part, dict):
            raise self.error("rope_parameters", "an object")
        sub = ConfigFile(self.path, part)
        sub.expect("partial_rotary_factor", 1.0, (1.0,))
        theta = sub.get("rope_theta", float, self.get("rope_theta", float, 10000.0))
        if theta <= 1:
            raise self.error("rope_theta", "a number above 1")
        kind = part.get("rope_type", part.get("type", "default"))
        if kind == "default":
            return theta, None
        if kind != "yarn":
            raise ModelError(
                f"{self.path}: rope type {kind!r} is not supported (known: default, yarn)"
            )
        original = sub.positive(
            "original_max_position_embeddings", self.positive("max_position_embeddings")
        )
        factor = sub.get("factor", float, self.positive("max_position_embeddings") / original)
        yarn = YarnSpec(
            factor=factor,
            original_max_context=original,
            beta_fast=sub.get("beta_fast", float, 32.0),
            beta_slow=sub.get("beta_slow", float, 1.0),
            mscale=sub.get("mscale", float, 0.0),
            mscale_all_dim=sub.get("mscale_all_dim", float, 0.0),
            attention_factor=sub.get("attention_factor", float, None),
            truncate=sub.get("truncate", bool, True),
        )
        for key in ("factor", "beta_fast", "beta_slow"):
            if not 0 < getattr(yarn, key) < _MOST_YARN:
                raise sub.error(key, f"a number above 0 and below {_MOST_YARN:g}")
        return theta, yarn
