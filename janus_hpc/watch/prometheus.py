"""Metrics as a text file for Prometheus's textfile collector: a format, and nothing of what is measured."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Metric(NamedTuple):
    """`samples`: labels and a value each. `kind` is gauge or counter."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def exposition(metrics: Sequence[Metric]) -> str:
    """The metrics in Prometheus's text format 0.0.4; those without a sample are left out."""
    lines: list[str] = []
    for metric in metrics:
        if not metric.samples:
            continue
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [
            f"{metric.name}{_labels(labels)} {value:.10g}" for labels, value in metric.samples
        ]
    return "\n".join(lines) + "\n"


def write_metrics(path: Path, metrics: Sequence[Metric]) -> None:
    """Written aside and renamed: the collector never sees half a file. Raises OSError."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(exposition(metrics), encoding="utf-8")
    os.replace(aside, path)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + pairs + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
