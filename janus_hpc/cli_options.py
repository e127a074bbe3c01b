"""Command-line options derived from `RunConfig`, so that flags and job-file keys cannot differ."""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from janus_hpc.config import RunConfig

Command = Callable[..., Any]


def run_options(skip: tuple[str, ...] = ("prompts",)) -> Callable[[Command], Command]:
    """A decorator that adds one option a field of `RunConfig`; options not given arrive as None."""

    def decorate(command: Command) -> Command:
        for name, hint in reversed(get_type_hints(RunConfig, include_extras=True).items()):
            if name not in skip:
                command = _option(name, hint)(command)
        return command

    return decorate


def _option(name: str, hint: Any) -> Callable[[Command], Command]:
    kind, meta = get_args(hint)
    default = next(f.default for f in msgspec.structs.fields(RunConfig) if f.name == name)
    text = meta.description
    names = [f"--{name.replace('_', '-')}", name]
    if name == "output":
        names.insert(0, "-o")
    if kind is bool:
        return click.option(*names, is_flag=True, default=None, help=text)
    if default not in (None, msgspec.NODEFAULT):
        text += f" [{default}]"
    return click.option(*names, type=_click_type(kind), default=None, help=text)


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return kind
