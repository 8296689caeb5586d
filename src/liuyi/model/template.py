"""Chat templates: what `transformers` renders, rendered in our sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from liuyi.core.errors import ModelError
from liuyi.model.sandbox import Budget, Sandbox, budget, deadline

SAID_BEGINS, SAID_ENDS = "\ufdd0", "\ufdd1"
"""Noncharacters around what the template's `{% generation %}` blocks render."""


def render_template(template: str, variables: dict[str, Any]) -> str:
    """Render; what `{% generation %}` blocks render stands between `SAID_BEGINS` and `SAID_ENDS`.

    Raises ModelError if the template is not valid, raises an exception of its own, or does what it must not.
    """
    spent = budget.set(Budget())
    try:
        return _compiled(template).render(variables)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"is not valid: {error.message}", where=f"chat template, line {error.lineno}") from error
    except SecurityError as error:
        raise ModelError(f"the chat template does what it must not: {error}") from error
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template refuses this conversation: {error}") from error
    except RecursionError as error:
        raise ModelError("the chat template does what it must not: it calls itself without end") from error
    except MemoryError as error:
        raise ModelError("the chat template does what it must not: it takes too much memory") from error
    except Exception as error:
        raise ModelError(f"the chat template fails on this conversation: {type(error).__name__}: {error}") from error
    finally:
        budget.reset(spent)


@contextmanager
def rendering_within(seconds: float) -> Iterator[None]:
    """All renderings inside together may take so long; each has its own limit besides."""
    token = deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        deadline.reset(token)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return f"{SAID_BEGINS}{caller()}{SAID_ENDS}"


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
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], filters={"tojson": _tojson}
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)
