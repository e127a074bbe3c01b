"""A Jinja sandbox whose templates end: steps, sizes and numbers are bounded, since a model folder's template is
code nobody here has read.

Knows nothing of chats; whoever renders decides what a refusal means.
"""

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Turns of loops and calls a rendering; a chat of a thousand messages takes ten thousand.
MAX_STEPS = 300_000
# Characters of a text, items of a list.
MAX_SIZE = 1 << 26
# A filter or method that takes a number makes something about as large.
MAX_NUMBER = 1 << 20
MAX_BITS = 1 << 12
_LARGE_WIDTH = re.compile(r"\d{7}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Sandbox that raises SecurityError where a rendering exceeds a limit. `begin` starts counting anew."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._num_steps = 0
        self.globals.pop("lipsum", None)
        self.filters = {name: _bounded(name, its) for name, its in self.filters.items()}
        self.concat = _concat  # type: ignore[assignment]

    def begin(self) -> None:
        """To be called before each rendering."""
        self._num_steps = 0

    def step(self) -> str:
        """Counts a turn of a loop; templates are compiled with a call of it in every body."""
        self._num_steps += 1
        if self._num_steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        return ""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the template's, counted."""
        self.step()
        if isinstance(getattr(obj, "__self__", None), str | bytes):
            _check_numbers(getattr(obj, "__name__", "a method"), args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums, products and powers whose result is not too large."""
        if operator == "**":
            _check_power(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "%":
            _check_widths(left)
            _check_numbers("%", right if isinstance(right, tuple) else (), {})
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(max(left.bit_length(), right.bit_length()))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` of a text, with bounded widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        _check_widths(value.__self__)
        safe = wrapped

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_numbers("format", args, kwargs)
            return safe(*args, **kwargs)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(step).set_lineno(loop.lineno))
        return tree


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`~` joins by the environment's bounded join."""
        self.write("environment.concat((")
        for its in node.nodes:
            self.write("str(")
            self.visit(its, frame)
            self.write("), ")
        self.write("))")


BoundedEnvironment.code_generator_class = _Generator


def _concat(parts: Iterable[str]) -> str:
    kept, size = [], 0
    for part in parts:
        size += len(part)
        _check_size(size)
        kept.append(part)
    return "".join(kept)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refusing large numbers among its arguments."""

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        # The first is what is filtered, or what the filter is told of its surroundings.
        _check_numbers(name, args[1:], kwargs)
        if name == "format" and args:
            _check_widths(args[0])
        return function(*args, **kwargs)

    return bounded


def _check_numbers(name: str, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for its in (*args, *kwargs.values()):
        if isinstance(its, int) and abs(its) > MAX_NUMBER:
            raise SecurityError(f"{name} of a number beyond {MAX_NUMBER}")


def _check_widths(text: Any) -> None:
    """Refuses a text that is formatted with numbers of many digits."""
    if isinstance(text, str) and _LARGE_WIDTH.search(text):
        raise SecurityError("it formats to a width of more than six digits")


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE} characters or items")


def _check_product(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int):
            _check_size(len(one) * other)
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_BITS:
        raise SecurityError(f"it makes a number of more than {MAX_BITS} bits")


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """The template's text. Raises SecurityError for one beyond the limits, and whatever the template raises."""
    environment = template.environment
    assert isinstance(environment, BoundedEnvironment)
    environment.begin()
    return _concat(template.generate(values))
