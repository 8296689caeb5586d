"""Prompts: Jinja templates in files, ours in English and Chinese, or one of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import StrictUndefined

from liuyi.core.digest import sha256_bytes
from liuyi.core.errors import DataError
from liuyi.model.sandbox import Budget, Sandbox, budget

Language = Literal["en", "zh"]

_FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Template:
    """A template that writes the user's message of a request."""

    name: str
    """Its file's name and the beginning of its digest: another text has another name."""
    where: str
    text: str

    @classmethod
    def read(cls, path: Path) -> Template:
        """Raises DataError if it is not UTF-8 or not valid."""
        try:
            data = path.read_bytes()
            template = cls(f"{path.name.removesuffix('.jinja')}@{sha256_bytes(data)[:12]}", str(path), data.decode())
        except (OSError, UnicodeError) as error:
            raise DataError(f"the template cannot be read: {error}", where=str(path)) from None
        _compiled(template)
        return template

    @classmethod
    def ours(cls, name: str, language: Language) -> Template:
        """The template of that name that comes with Liuyi."""
        return cls.read(_FOLDER / f"{name}.{language}.jinja")

    def write(self, **variables: Any) -> str:
        """The prompt. Raises DataError where the template uses what it is not given, or does what it must not."""
        spent = budget.set(Budget())
        try:
            return _compiled(self).render(variables).strip()
        except jinja2.UndefinedError as error:
            hint = f"it is given: {', '.join(sorted(variables))}"
            raise DataError(f"the template uses what there is not: {error}", where=self.where, hint=hint) from None
        except Exception as error:  # whatever a template of the user's can cause
            raise DataError(f"the template fails: {error}", where=self.where) from None
        finally:
            budget.reset(spent)


@cache
def _compiled(template: Template) -> jinja2.Template:
    environment = Sandbox({}, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    try:
        return environment.from_string(template.text)
    except jinja2.TemplateSyntaxError as error:
        where = f"{template.where}, line {error.lineno}"
        raise DataError(f"the template is not valid: {error.message}", where=where) from None
