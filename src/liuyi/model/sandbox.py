"""A Jinja environment for templates from anywhere: they may render text from the data they are given, nothing else.

Jinja's own sandbox keeps a template away from attributes that lead out of the data. This one also bounds what it
costs: rounds of loops and calls are counted, time is limited, and no value may grow beyond a size, however it is made.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_ROUNDS = 1_000_000
"""Rounds of loops and calls of functions and filters in one rendering."""
MAX_SIZE = 16 * 1024 * 1024
"""Characters that one value may hold, all that it contains counted; an item of a list or dict counts as `ITEM`."""
ITEM = 64
MAX_SECONDS = 5.0
MAX_WIDTH = 10_000
"""A number given to what pads or repeats, or the length of what joins."""

_WIDE_FORMAT = re.compile(r"\d{5,}|\*|\{[^}]*\{")
_WIDENING_FILTERS = ("batch", "center", "indent", "slice", "tojson", "wordwrap")


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.rounds = MAX_ROUNDS
        self.ends = min(time.monotonic() + MAX_SECONDS, deadline.get())

    def spend(self) -> None:
        self.rounds -= 1
        if self.rounds < 0:
            raise SecurityError(f"it takes more than {MAX_ROUNDS} rounds of loops and calls")
        if time.monotonic() > self.ends:
            raise SecurityError("it takes too long")


deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)
"""When all renderings that belong together must be done, by `time.monotonic`."""
budget: ContextVar[Budget] = ContextVar("budget")


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders within the `budget` of its context."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.filters = {name: _guarded_filter(name, function) for name, function in {**self.filters, **filters}.items()}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        return "".join(_up_to(MAX_SIZE, parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Guards().visit(super()._parse(source, name, filename))
        return tree

    def rounds_of(self, items: Any) -> Any:
        """The items of a loop, each round of which is counted."""
        return _Counted(items) if hasattr(items, "__len__") else _counted(items)

    def bounded(self, value: Any) -> Any:
        """A value that the template has just made."""
        return bounded(value)

    def join(self, *parts: Any) -> str:
        """The parts of `a ~ b`."""
        return self.concat(str(bounded(part)) for part in parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget.get().spend()
        if operator == "**":
            raise SecurityError("'**' is not allowed")
        if operator == "%" and isinstance(left, str):
            _allow_format(left)
        if operator == "*":
            _allow(max(_product(left, right), _product(right, left)))
        if operator == "+":
            _allow(size_of(left) + size_of(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget.get().spend()
        if isinstance(__obj, LoopContext) and args:
            args = (__self.rounds_of(args[0]), *args[1:])
        # The sandbox wraps `format`, which is then no method any more.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            _allow_method(owner, __obj.__name__, [*args, *kwargs.values()])
        return bounded(super().call(__context, __obj, *args, **kwargs))


class _Guards(NodeTransformer):
    """Puts the sandbox's guards around loops, around what joins strings, and around lists and dicts written out."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _guard("rounds_of", cast("nodes.Expr", node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard("join", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _guard("bounded", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _guard("bounded", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _guard("bounded", node) if node.ctx == "load" else node


def _guard(name: str, *values: nodes.Expr) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None)
    call.set_lineno(values[0].lineno)
    return call


class _Counted:
    """A sequence whose rounds are counted; keeps its length, which `loop` shows."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return _counted(self.items)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        budget.get().spend()
        yield item


def bounded(value: Any) -> Any:
    """The value, if it is not too large."""
    _allow(size_of(value))
    return value


def size_of(value: Any) -> int:
    """The size of a value as `MAX_SIZE` counts it; counting stops soon after that."""
    if isinstance(value, str | bytes):
        return len(value)
    size, waiting = 0, [value]
    while waiting and size <= MAX_SIZE:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, Mapping):
            waiting += itertools.chain.from_iterable(item.items())
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif isinstance(item, int):
            size += item.bit_length() // 8
        size += ITEM
    return size


def _up_to(limit: int, parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        limit -= len(part)
        if limit < 0:
            raise SecurityError(f"it makes a text longer than {MAX_SIZE} characters")
        yield part


def _allow(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value larger than {MAX_SIZE} characters")


def _product(value: Any, times: Any) -> int:
    if isinstance(value, int) and isinstance(times, int):
        return (value.bit_length() + times.bit_length()) * (MAX_SIZE // 4096)
    return size_of(value) * times if isinstance(times, int) else 0


def _allow_method(owner: str, name: str, given: list[Any]) -> None:
    """A method of a string may pad it to a width, or put one string into another many times."""
    if name in ("format", "format_map"):
        _allow_format(owner)
    if name == "join":
        _allow_width(name, len(owner))
    for value in given:
        if isinstance(value, int) and name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
            _allow_width(name, value)
        if name in ("replace", "translate"):
            _allow((len(owner) + 1) * (size_of(value) + 1))


def _allow_width(name: str, width: int) -> None:
    if abs(width) > MAX_WIDTH:
        raise SecurityError(f"it widens by more than {MAX_WIDTH} characters with '{name}'")


def _allow_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise SecurityError("it formats to a width that is not a small number")


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend()
        given = [*args, *kwargs.values()]
        strings = [value for value in given if isinstance(value, str)]
        for value in given:
            if isinstance(value, int) and name in _WIDENING_FILTERS:
                _allow_width(name, value)
        if name == "join":
            _allow_width(name, len(str(kwargs.get("d", args[2] if len(args) > 2 else ""))))
        if name == "format" and strings:
            _allow_format(strings[0])
        if name == "replace" and len(strings) > 2:
            _allow((len(strings[0]) + 1) * (len(strings[2]) + 1))
        return bounded(function(*args, **kwargs))

    return guarded
