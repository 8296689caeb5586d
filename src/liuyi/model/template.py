"""Chat templates in a sandbox: a template comes with a model from anywhere, so it may render text and nothing else.

No attribute or method that leads out of the data, no endless loops, no giant strings. What it renders is what
`transformers` renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from liuyi.core.errors import ModelError

MAX_ROUNDS = 1_000_000
"""Rounds that all loops of one rendering may take together."""
MAX_CHARACTERS = 64 * 1024 * 1024
"""Length that a string may reach while a template is rendered."""

SAID_BEGINS, SAID_ENDS = "\ufdd0", "\ufdd1"
"""Noncharacters around what the template's `{% generation %}` blocks render."""


def render_template(template: str, variables: dict[str, Any]) -> str:
    """Render; what `{% generation %}` blocks render stands between `SAID_BEGINS` and `SAID_ENDS`.

    Raises ModelError if the template is not valid, raises an exception of its own, or does what it must not.
    """
    rounds = _rounds.set([MAX_ROUNDS])
    try:
        pieces, length = [], 0
        for piece in _compiled(template).generate(variables):
            pieces.append(piece)
            length += len(piece)
            _allow_length(length)
        return "".join(pieces)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"not a valid template: {error.message}", where=f"chat template, line {error.lineno}"
        ) from error
    except SecurityError as error:
        raise ModelError(f"the chat template does what it must not: {error}") from error
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template refuses this conversation: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise ModelError("the chat template takes too much memory") from error
    except Exception as error:
        raise ModelError(f"the chat template fails on this conversation: {type(error).__name__}: {error}") from error
    finally:
        _rounds.reset(rounds)


_rounds: ContextVar[list[int]] = ContextVar("rounds")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return f"{SAID_BEGINS}{caller()}{SAID_ENDS}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a budget for loops and sizes."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Call(nodes.EnvironmentAttribute("count_rounds"), [loop.iter], [], None, None)
        return tree

    @staticmethod
    def count_rounds(items: Iterable[Any]) -> Iterable[Any]:
        return _Counted(items) if hasattr(items, "__len__") else _counted(items)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"'{operator}' is not allowed")
        if operator == "*":
            _allow_length(_length(left) * right if isinstance(right, int) else 0)
            _allow_length(_length(right) * left if isinstance(left, int) else 0)
        if operator == "+":
            _allow_length(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # A method of a string can widen it by a number or by every argument: bound the product.
        given = [*args, *kwargs.values()]
        size = max(1, _length(getattr(__obj, "__self__", None)))
        for value in given:
            _allow_length(value if isinstance(value, int) else size * max(1, _length(value)) if _grows(__obj) else 0)
        return super().call(__context, __obj, *args, **kwargs)


class _Counted:
    """A sequence whose rounds are counted; keeps its length, which `loop` shows."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return _counted(self.items)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    left = _rounds.get()
    for item in items:
        left[0] -= 1
        if left[0] < 0:
            raise SecurityError(f"its loops take more than {MAX_ROUNDS} rounds")
        yield item


def _allow_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise SecurityError(f"it makes a string or list longer than {MAX_CHARACTERS}")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _grows(function: Any) -> bool:
    return isinstance(getattr(function, "__self__", None), str) and function.__name__ in ("join", "replace")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt must not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)
