"""The demo model's folder, in the hub's format, and where it lies."""

from pathlib import Path


def demo_model_dir() -> Path:
    """Return the folder with config.json, weights and tokenizer of the demo model."""
    return Path(__file__).resolve().parent
